//! The service over a bucket in memory, on a clock that runs an hour each tenth of a second.

mod doors;
mod letters;
pub(crate) mod support;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::books::book_key;
use super::service::keep_mark;
use crate::config::CanaryPolicy;
use crate::plan::schedule::{Book, Outcome};
use crate::ports::ObjectStore;
use crate::s3::MemoryStore;
use support::*;

/// None: there is none yet, or the bucket is away.
async fn book(store: &MemoryStore) -> Option<Book> {
    let text = store.get(&book_key("demo", "p", "a"), 1 << 20).await.ok()?;
    Some(serde_json::from_slice(&text).unwrap())
}

/// Waits until the book says so; a minute is far more than it takes.
async fn until(store: &MemoryStore, what: &str, holds: impl Fn(&Book) -> bool) -> Book {
    for _ in 0..6000 {
        if let Some(book) = book(store).await.filter(&holds) {
            return book;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: {:?}", book(store).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_share_the_work_and_the_survivor_finishes_what_a_dead_one_began() {
    let store = MemoryStore::new();
    let (clock, worker) = (Arc::new(Hands::new(HOUR)), Arc::new(Worker::default()));
    let instance = |name: &str| {
        let worker = Arc::new(Instance { name: name.to_owned(), shared: Arc::clone(&worker) });
        start(name, policy(HOURLY), &store, worker, Arc::clone(&clock) as _, CancellationToken::new())
    };
    let (one, two) = (instance("one"), instance("two"));
    until(&store, "some runs", |book| book.past.len() >= 6).await;
    // The next run hangs, and whoever carries it out dies.
    worker.hang();
    until(&store, "a run that hangs", |_| worker.hanging()).await;
    // Read once it hangs: a book from before may tell of the run that ended meanwhile.
    let hung = until(&store, "its claim", |book| book.current.is_some()).await.current.unwrap();
    let (dead, survivor) = if hung.holder == "one" { (one, two) } else { (two, one) };
    dead.abort();
    worker.go_on();
    let taken_over = |book: &Book| book.past.iter().any(|past| past.at == hung.at);
    let book = until(&store, "the run is taken over", taken_over).await;
    let past = book.past.iter().find(|past| past.at == hung.at).unwrap();
    assert_ne!(past.holder, hung.holder);
    assert_eq!(past.outcome, Outcome::Succeeded);
    until(&store, "it goes on", |book| book.past.last().is_some_and(|past| past.at > hung.at)).await;
    survivor.abort();
    let done = worker.done();
    let mut once = done.clone();
    once.dedup();
    assert_eq!(done, once, "a run was carried out twice");
    assert_eq!(worker.attempts(hung.at), 2, "{done:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_away_delays_and_loses_nothing() {
    let store = MemoryStore::new();
    let (clock, worker) = (Arc::new(Hands::new(HOUR)), Arc::new(Worker::default()));
    let own = Arc::new(Instance { name: "one".into(), shared: Arc::clone(&worker) });
    let running =
        start("one", policy(&format!("{HOURLY}, missed: each")), &store, own, clock, CancellationToken::new());
    let before = until(&store, "some runs", |book| book.past.len() >= 3).await.past.last().unwrap().at;
    away(&store, 40);
    let book =
        until(&store, "some more", |book| book.past.last().is_some_and(|p| (p.at - before).as_hours() >= 6)).await;
    running.abort();
    let hours: Vec<_> = book.past.iter().map(|past| past.at).collect();
    assert!(hours.windows(2).all(|pair| pair[1].duration_since(pair[0]) == HOUR_LONG), "{hours:?}");
    assert_eq!(worker.done().len(), worker.done().iter().collect::<std::collections::BTreeSet<_>>().len());
}

#[tokio::test]
async fn the_canary_is_written_as_often_as_is_declared_until_it_stops() {
    let (store, worker) = (MemoryStore::new(), Arc::new(Worker::default()));
    let own = Arc::new(Instance { name: "one".into(), shared: Arc::clone(&worker) });
    let tended = tended(policy(HOURLY), &store, own, Arc::new(Hands::new(1)));
    let stop = CancellationToken::new();
    // Oftener than anybody may declare.
    let canary = CanaryPolicy { every_seconds: 1 };
    let keeping = tokio::spawn(keep_mark(tended, canary, stop.clone()));
    while worker.marks.lock().unwrap().len() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stop.cancel();
    keeping.await.unwrap();
    let marks = worker.marks.lock().unwrap().clone();
    assert!(marks[1].at > marks[0].at && marks.iter().all(|mark| mark.every_seconds == 1), "{marks:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_stops_when_what_is_under_way_has_ended() {
    let store = MemoryStore::new();
    let (clock, worker) = (Arc::new(Hands::new(HOUR)), Arc::new(Worker::default()));
    let own = Arc::new(Instance { name: "one".into(), shared: Arc::clone(&worker) });
    let stop = CancellationToken::new();
    worker.hang();
    let running = start("one", policy(HOURLY), &store, own, clock, stop.clone());
    until(&store, "a run", |book| book.current.is_some() && worker.hanging()).await;
    stop.cancel();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!running.is_finished(), "it did not wait for the run");
    worker.go_on();
    tokio::time::timeout(Duration::from_secs(30), running).await.unwrap().unwrap();
    let book = book(&store).await.unwrap();
    assert_eq!((book.current, book.past.len()), (None, 1), "the run was concluded, and no other begun");
}

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;

use super::{Claim, KeptLease, Lease, LeaseError, Pace, lease_key, look};
use crate::ports::{Clock, ErrorCode, ObjectStore, PortError, PutCondition};
use crate::s3::{Fault, MemoryStore, Operation};

/// A clock that is set by hand.
#[derive(Clone)]
struct Hand(Arc<Mutex<Timestamp>>);

impl Hand {
    fn new() -> Self {
        Self(Arc::new(Mutex::new("2026-11-23T03:00:00Z".parse().unwrap())))
    }
    fn forward(&self, seconds: u64) {
        let mut now = self.0.lock().unwrap();
        *now = now.checked_add(Duration::from_secs(seconds)).unwrap();
    }
}

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
}

fn claim(who: &str) -> Claim {
    Claim {
        cluster: "demo".into(),
        name: "operator".into(),
        holder: format!("{who}@desk"),
        seat: format!("seat-of-{who}"),
        purpose: "runbook run masters-recreate".into(),
        ttl: Duration::from_secs(60),
        by_force: false,
    }
}

#[tokio::test]
async fn a_second_operator_is_told_who_works_since_when_and_until_when() {
    let (store, clock) = (MemoryStore::new(), Hand::new());
    let first = Lease::acquire(&store, &claim("ann"), &clock).await.unwrap();
    assert_eq!(first.token(), 1);
    clock.forward(59);
    let refused = Lease::acquire(&store, &claim("bob"), &clock).await.unwrap_err();
    assert_eq!(
        refused.to_string(),
        "ann@desk works on this (runbook run masters-recreate), since 2026-11-23T03:00:00Z, and may until \
         2026-11-23T03:01:00Z"
    );
    first.release(&store, &clock).await.unwrap();
    assert_eq!(Lease::acquire(&store, &claim("bob"), &clock).await.unwrap().token(), 2);
}

#[tokio::test]
async fn one_that_ran_out_is_taken_over_and_its_holder_notices_before_and_after() {
    let (store, clock) = (MemoryStore::new(), Hand::new());
    let mut first = Lease::acquire(&store, &claim("ann"), &clock).await.unwrap();
    assert!(first.holds(clock.now()));
    clock.forward(51);
    assert!(!first.holds(clock.now()), "the holder stops before another may begin");
    assert!(matches!(Lease::acquire(&store, &claim("bob"), &clock).await, Err(LeaseError::Held(_))));
    clock.forward(9);
    let second = Lease::acquire(&store, &claim("bob"), &clock).await.unwrap();
    assert_eq!(second.token(), 2);
    let lost = first.renew(&store, &clock).await.unwrap_err();
    assert_eq!(lost.code, ErrorCode::Conflict);
    assert!(lost.message.contains("bob@desk has taken over"), "{lost}");
    assert!(first.release(&store, &clock).await.is_err(), "what is another's can't be released");
    assert!(look(&store, "demo", "operator").await.unwrap().unwrap().is_held(clock.now()));
}

#[tokio::test]
async fn a_process_of_the_same_seat_needs_not_wait_and_force_takes_it_from_anyone() {
    let (store, clock) = (MemoryStore::new(), Hand::new());
    let mut dead = Lease::acquire(&store, &claim("ann"), &clock).await.unwrap();
    let mut again = Lease::acquire(&store, &claim("ann"), &clock).await.unwrap();
    assert_eq!(again.token(), 2);
    assert_eq!(dead.renew(&store, &clock).await.unwrap_err().code, ErrorCode::Conflict, "the token fences it");
    let forced = Claim { by_force: true, ..claim("bob") };
    assert_eq!(Lease::acquire(&store, &forced, &clock).await.unwrap().token(), 3);
    assert_eq!(again.renew(&store, &clock).await.unwrap_err().code, ErrorCode::Conflict);
}

#[tokio::test]
async fn of_many_who_try_at_once_one_gets_it() {
    let (store, clock) = (MemoryStore::new(), Hand::new());
    let tries = (0..20).map(|n| {
        let (store, clock) = (store.clone(), clock.clone());
        async move { Lease::acquire(&store, &claim(&format!("op{n}")), &clock).await.is_ok() }
    });
    let got = futures::future::join_all(tries).await;
    assert_eq!(got.iter().filter(|got| **got).count(), 1);
}

#[tokio::test]
async fn a_lost_answer_costs_nothing_and_a_removed_lease_is_written_again() {
    let (store, clock) = (MemoryStore::new(), Hand::new());
    store.lose_answer_of_put(1);
    let mut lease = Lease::acquire(&store, &claim("ann"), &clock).await.unwrap();
    assert_eq!(lease.token(), 1);
    store.delete(&lease_key("demo", "operator")).await.unwrap();
    lease.renew(&store, &clock).await.unwrap();
    assert!(matches!(Lease::acquire(&store, &claim("bob"), &clock).await, Err(LeaseError::Held(_))));
}

#[tokio::test]
async fn a_damaged_or_newer_document_is_refused_with_what_to_do() {
    let (store, clock) = (MemoryStore::new(), Hand::new());
    let key = lease_key("demo", "operator");
    store.put(&key, "{".into(), PutCondition::Any).await.unwrap();
    let LeaseError::Port(error) = Lease::acquire(&store, &claim("ann"), &clock).await.unwrap_err() else { panic!() };
    assert_eq!(error.code, ErrorCode::Corrupt);
    assert!(error.hint.unwrap().contains("nothing was touched"));
}

#[tokio::test]
async fn a_kept_lease_survives_a_short_outage_waits_through_a_long_one_and_ends_when_it_is_taken() {
    let (store, clock) = (MemoryStore::new(), Hand::new());
    let ms = Duration::from_millis;
    let pace = Pace { fresh: ms(0), try_every: ms(5), wait: Duration::from_secs(20) };
    let lease = Lease::acquire(&store, &claim("ann"), &clock).await.unwrap();
    let kept = KeptLease::keep(lease, Arc::new(store.clone()), Arc::new(clock.clone()), pace);
    for _ in 0..10 {
        clock.forward(40);
        kept.check(|_| {}).await.unwrap();
        assert!(matches!(Lease::acquire(&store, &claim("bob"), &clock).await, Err(LeaseError::Held(_))));
    }
    // The bucket is away: while the lease lasts, that is no obstacle.
    let away = || PortError::new(ErrorCode::Unreachable, "away");
    let puts = store.calls(Operation::Put);
    for nth in puts + 1..puts + 20 {
        store.fail(Fault { operation: Operation::Put, nth, error: away() });
    }
    clock.forward(10);
    kept.check(|_| panic!("it need not wait")).await.unwrap();
    // After that its holder waits for the bucket, and goes on when it is back and nobody took the lease.
    clock.forward(100);
    let mut said = None;
    kept.check(|error| said = Some(error.message.clone())).await.unwrap();
    assert_eq!(said.as_deref(), Some("away"));

    let forced = Claim { by_force: true, ..claim("bob") };
    Lease::acquire(&store, &forced, &clock).await.unwrap();
    assert_eq!(kept.check(|_| {}).await.unwrap_err().code, ErrorCode::Conflict);
    kept.release().await.unwrap();
    assert!(look(&store, "demo", "operator").await.unwrap().unwrap().is_held(clock.now()), "bob's is not let go of");
}

#[tokio::test]
async fn a_kept_lease_renews_itself() {
    let (store, clock) = (MemoryStore::new(), Hand::new());
    let claim = Claim { ttl: Duration::from_millis(30), ..claim("ann") };
    let lease = Lease::acquire(&store, &claim, &clock).await.unwrap();
    let (puts, kept) = (store.calls(Operation::Put), Arc::new(store.clone()));
    let kept = KeptLease::keep(lease, kept, Arc::new(clock.clone()), Pace::default());
    while store.calls(Operation::Put) < puts + 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    kept.release().await.unwrap();
    assert!(look(&store, "demo", "operator").await.unwrap().unwrap().released);
}

//! The service: runs policies for one or many clusters, shares that work with further instances, and says how it stands.
//!
//! It decides nothing about recovering and does nothing of it by itself: what is due says `plan::schedule`, what is done
//! does [`Work`], which the command line implements with the functions its commands call.
//!
//! - `work`: the order for one run, and the port through which it is carried out.
//! - `books`: the schedules' books in the bucket: claims, beats, take-overs.
//! - `tend`: the loop of one cluster.
//! - `view`: what is known of the clusters, looked at now and then.
//! - `metrics`, `page`, `http`: the same, for Prometheus, people and probes.
//! - `tls`: certificates, ours and of those who ask.
//! - `notify`: who hears of what.
//! - `service`: all of it together; begin, watchdog, stop.

mod books;
mod http;
mod metrics;
mod notify;
mod page;
mod service;
mod tend;
#[cfg(test)]
mod tests;
mod tls;
mod view;
mod work;

pub use books::{Books, book_key};
pub use http::{Door, router};
pub use metrics::metrics;
pub use notify::{Letter, Notifier, Secrets, deliver};
pub use page::page;
pub use service::{Options, Service, Tended};
pub use tend::{Pace, tend};
#[cfg(test)]
pub(crate) use tests::support::sample;
pub use tls::{Peer, Tls, TlsListener};
pub use view::{ClusterView, Gauges, RunView, ScheduleView, View, observe};
pub use work::{Order, Report, Work};

//! A client of etcd over gRPC: HTTP/2 by hyper, and the necessary messages by `message`.
//!
//! Generating a client from etcd's `.proto` files needs `protoc`, which is not part of a Rust
//! toolchain. etcd's JSON gateway needs no tool, but does not identify users by their certificates,
//! so permissions could not be set per node.

mod channel;
mod message;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::Duration;
use std::{fmt, io, thread};

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

pub use self::channel::{Access, AccessError, Certificates};

use self::channel::Channel;
use self::message::Message;
use super::{
    Condition, Entry, Event, Lease, Listing, Operation, Revision, Store, StoreError, Watch, check,
};

/// Keys in a page of a listing.
const PAGE: i64 = 16;

/// A client of etcd, which changes to another member when one does not answer.
pub struct EtcdStore {
    runtime: Handle,
    channel: Arc<Channel>,
    /// Dropping this ends the runtime's thread.
    _stop: oneshot::Sender<()>,
}

impl fmt::Debug for EtcdStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EtcdStore").finish_non_exhaustive()
    }
}

impl EtcdStore {
    /// Makes a client that connects on its first request.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn new(access: Access) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        thread::Builder::new()
            .name("slb etcd".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    let _ = stopped.await;
                });
            })?;
        Ok(Self {
            runtime: handle,
            channel: Arc::new(Channel::new(access)),
            _stop: stop,
        })
    }

    fn call(&self, path: &'static str, message: &Message) -> Result<Vec<u8>, StoreError> {
        self.runtime.block_on(self.channel.call(path, &message.0))
    }
}

impl Store for EtcdStore {
    fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let answer = self.call("/etcdserverpb.KV/Range", &message::get(key))?;
        Ok(message::read_page(&answer)?.entries.pop())
    }

    fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        let mut listing = Listing::default();
        let mut from = prefix.as_bytes().to_vec();
        loop {
            let asked = message::list(prefix, &from, PAGE, listing.revision);
            let page = message::read_page(&self.call("/etcdserverpb.KV/Range", &asked)?)?;
            if listing.revision == 0 {
                listing.revision = page.revision;
            }
            if let Some(last) = page.entries.last() {
                from = last.key.as_bytes().to_vec();
                from.push(0);
            }
            let is_last = !page.has_more || page.entries.is_empty();
            listing.entries.extend(page.entries);
            if is_last {
                return Ok(listing);
            }
        }
    }

    fn watch(&self, prefix: &str, revision: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let asked = message::watch(prefix, revision);
        let (tell, told) = channel();
        let (end, ended) = oneshot::channel();
        let open = self
            .channel
            .open("/etcdserverpb.Watch/Watch", &asked.0, ended);
        let mut messages = self.runtime.block_on(open)?;
        self.runtime.spawn(async move {
            loop {
                let events = match messages.next().await {
                    Ok(Some(bytes)) => message::read_watch(&bytes),
                    Ok(None) => Err(StoreError::Away("the watch was ended".to_owned())),
                    Err(error) => Err(error),
                };
                // For example the notification that the watch began.
                if events.as_ref().is_ok_and(Vec::is_empty) {
                    continue;
                }
                let is_over = events.is_err();
                // Without the receiver, the watch is over.
                if tell.send(events).is_err() || is_over {
                    return;
                }
            }
        });
        Ok(Box::new(EtcdWatch { told, _end: end }))
    }

    fn commit(
        &self,
        conditions: &[Condition],
        operations: &[Operation],
    ) -> Result<Option<Revision>, StoreError> {
        check(operations)?;
        let asked = message::transaction(conditions, operations);
        let answer = self.call("/etcdserverpb.KV/Txn", &asked)?;
        let (revision, is_done) = message::read_transaction(&answer)?;
        Ok(is_done.then_some(revision))
    }

    fn grant(&self, length: Duration) -> Result<Lease, StoreError> {
        let seconds = i64::try_from(length.as_secs()).unwrap_or(i64::MAX).max(1);
        let answer = self.call("/etcdserverpb.Lease/LeaseGrant", &message::grant(seconds))?;
        Ok(Lease(message::read_lease(&answer)?.0))
    }

    fn keep(&self, lease: Lease) -> Result<(), StoreError> {
        let asked = message::lease(lease.0);
        let answer = self.call("/etcdserverpb.Lease/LeaseKeepAlive", &asked)?;
        match message::read_lease(&answer)? {
            (_, seconds) if seconds > 0 => Ok(()),
            _ => Err(StoreError::LeaseEnded),
        }
    }

    fn revoke(&self, lease: Lease) -> Result<(), StoreError> {
        let asked = message::lease(lease.0);
        self.call("/etcdserverpb.Lease/LeaseRevoke", &asked)?;
        Ok(())
    }
}

struct EtcdWatch {
    told: Receiver<Result<Vec<Event>, StoreError>>,
    /// Ends the request, and with it the watch.
    _end: oneshot::Sender<()>,
}

impl Watch for EtcdWatch {
    fn next(&mut self, patience: Duration) -> Result<Vec<Event>, StoreError> {
        let over = || StoreError::Away("the watch is over".to_owned());
        let mut events = match self.told.recv_timeout(patience) {
            Ok(events) => events?,
            Err(RecvTimeoutError::Timeout) => return Ok(Vec::new()),
            Err(RecvTimeoutError::Disconnected) => return Err(over()),
        };
        // Include the events that have arrived meanwhile.
        loop {
            match self.told.try_recv() {
                Ok(more) => events.extend(more?),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return Ok(events),
            }
        }
    }
}

//! What waits for an executor. Every limit counts commands, since a [`Pending`] may have a thousand of them.
//!
//! A command takes a place before it is handed over, and gives it back when the executor takes it. Commands of bulk
//! requests wait for a place; for that they need one of the bulk share's places first, so all of them together, the
//! waiting ones too, never have more than the share. A command on its own does not wait, and is turned away only when
//! commands on their own have all the rest: tokio's semaphores serve whoever waits first, and without a share a single
//! bulk request that waits would turn everybody else away.

use std::sync::Arc;

use ::metrics::{Gauge, gauge};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc},
    time::{Instant, timeout_at},
};

use super::{count, pending::Pending};
use crate::{Failure, commands::Limits, metrics};

/// Where commands are handed in. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Queue {
    /// Has no bound of its own: `places` is the bound.
    sender: mpsc::UnboundedSender<Pending>,
    places: Arc<Semaphore>,
    bulk_places: Arc<Semaphore>,
    depth: Gauge,
}

/// Where an executor takes them from.
pub(crate) struct Waiting {
    receiver: mpsc::UnboundedReceiver<Pending>,
    /// Taken off the channel, and too many for the last batch; they still have their places.
    next: Option<Pending>,
    places: Arc<Semaphore>,
    bulk_places: Arc<Semaphore>,
}

/// The places of some commands in a queue, had until this is dropped.
#[derive(Debug)]
pub(crate) struct Places {
    _places: OwnedSemaphorePermit,
    _of_bulk: Option<OwnedSemaphorePermit>,
    commands: usize,
    depth: Gauge,
}

/// The queue of one executor.
pub(crate) fn queue(name: &str, limits: &Limits) -> (Queue, Waiting) {
    let label = || [("executor", name.to_owned())];
    gauge!(metrics::QUEUE_LIMIT, &label()).set(count(limits.queue_max));
    let places = |number: usize| Arc::new(Semaphore::new(number.min(Semaphore::MAX_PERMITS)));
    let (places, bulk_places) = (places(limits.queue_max), places(limits.bulk_queue_max()));
    let (sender, receiver) = mpsc::unbounded_channel();
    let depth = gauge!(metrics::QUEUE_DEPTH, &label());
    let waiting = Waiting { receiver, next: None, places: Arc::clone(&places), bulk_places: Arc::clone(&bulk_places) };
    (Queue { sender, places, bulk_places, depth }, waiting)
}

impl Queue {
    /// Hand in if there is room now.
    pub(crate) fn try_send(&self, pending: Pending) -> Result<(), Failure> {
        let places = Arc::clone(&self.places).try_acquire_many_owned(places_for(&pending));
        let places = places.map_err(|error| match error {
            TryAcquireError::NoPermits => Failure::Overloaded,
            TryAcquireError::Closed => Failure::Unavailable,
        })?;
        self.hand_over(pending, places, None)
    }

    /// Hand in as part of a bulk request, waiting for room. More commands than the share has places never find room.
    pub(crate) async fn send_by(&self, deadline: Instant, pending: Pending) -> Result<(), Failure> {
        let number = places_for(&pending);
        let room = async {
            let of_bulk = Arc::clone(&self.bulk_places).acquire_many_owned(number).await?;
            Ok((of_bulk, Arc::clone(&self.places).acquire_many_owned(number).await?))
        };
        match timeout_at(deadline, room).await {
            Ok(Ok((of_bulk, places))) => self.hand_over(pending, places, Some(of_bulk)),
            Ok(Err::<_, tokio::sync::AcquireError>(_)) => Err(Failure::Unavailable),
            Err(_) => Err(Failure::Overloaded),
        }
    }

    fn hand_over(
        &self,
        mut pending: Pending,
        places: OwnedSemaphorePermit,
        of_bulk: Option<OwnedSemaphorePermit>,
    ) -> Result<(), Failure> {
        let commands = pending.items.len();
        self.depth.increment(count(commands));
        pending.places = Some(Places { _places: places, _of_bulk: of_bulk, commands, depth: self.depth.clone() });
        self.sender.send(pending).map_err(|_| Failure::Unavailable)
    }
}

fn places_for(pending: &Pending) -> u32 {
    u32::try_from(pending.items.len()).unwrap_or(u32::MAX)
}

impl Drop for Places {
    fn drop(&mut self) {
        self.depth.decrement(count(self.commands));
    }
}

impl Waiting {
    /// What waits, up to so many commands, or a single [`Pending`] that has more; nothing once closed and empty. May be
    /// cancelled without losing any.
    pub(super) async fn take(&mut self, commands_max: usize) -> Vec<Pending> {
        if self.next.is_none() {
            self.next = self.receiver.recv().await;
        }
        let mut taken = Vec::new();
        let mut commands = 0;
        while let Some(mut pending) = self.next.take().or_else(|| self.receiver.try_recv().ok()) {
            if !taken.is_empty() && commands + pending.items.len() > commands_max {
                self.next = Some(pending);
                break;
            }
            pending.places = None;
            commands += pending.items.len();
            taken.push(pending);
            if commands >= commands_max {
                break;
            }
        }
        taken
    }

    /// Take no more in; what has been is still there to be taken.
    pub(super) fn close(&mut self) {
        self.receiver.close();
        self.places.close();
        self.bulk_places.close();
    }
}

/// Nobody waits for room in a queue that nobody takes from any more.
impl Drop for Waiting {
    fn drop(&mut self) {
        self.close();
    }
}

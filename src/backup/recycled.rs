use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;

/// Buffers that come back when what they carried was dropped, wherever that is. New memory costs a page fault for
/// each 4 KiB of it.
pub(super) struct Recycled {
    back: SyncSender<Vec<u8>>,
    free: Receiver<Vec<u8>>,
}

/// A buffer under way.
struct Carrier {
    /// Empty once it went back.
    buffer: Vec<u8>,
    back: SyncSender<Vec<u8>>,
}

impl AsRef<[u8]> for Carrier {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        // One too many, or nobody fills it any more: it is freed.
        let _ = self.back.try_send(std::mem::take(&mut self.buffer));
    }
}

impl Recycled {
    /// Keeps at most so many buffers that nobody uses.
    pub fn new(kept: usize) -> Self {
        let (back, free) = sync_channel(kept);
        Self { back, free }
    }

    /// Lets `fill` write into a buffer of so many bytes, which are any bytes before, and hands on as many as it says.
    pub fn filled<E>(&self, bytes: usize, fill: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<Bytes, E> {
        let mut buffer = self.free.try_recv().unwrap_or_default();
        // Costs nothing where it had these bytes before.
        buffer.resize(bytes, 0);
        let written = fill(&mut buffer)?;
        Ok(Bytes::from_owner(Carrier { buffer, back: self.back.clone() }).slice(..written))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_last_holder_is_done() {
        let recycled = Recycled::new(2);
        let fill = |byte: u8| {
            let filled = recycled.filled(20, |buffer| {
                buffer.fill(byte);
                Ok::<_, ()>(10)
            });
            filled.unwrap()
        };
        let first = fill(1);
        let (place, part) = (first.as_ptr(), first.slice(3..5));
        drop(first);
        let second = fill(2);
        assert_ne!(second.as_ptr(), place, "it is still read");
        assert_eq!(&part[..], [1, 1]);
        drop(part);
        assert_eq!(fill(3).as_ptr(), place);
        assert_eq!(&second[..], [2; 10]);
        assert!(recycled.filled(1, |_| Err::<usize, _>("why")).is_err());
    }
}

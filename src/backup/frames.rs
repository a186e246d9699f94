//! Compression by several threads. Each block of the data becomes a zstd frame of its own, compressed from where it lies; frames
//! one behind the other are what any decoder takes for one stream (RFC 8878, section 3).

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;

use bytes::Bytes;

use super::recycled::Recycled;

/// Blocks in one thread's hands: one that it works on, and the next.
const IN_HAND: usize = 2;

/// One thread: blocks go in, their frames come out in the same order.
struct Lane {
    blocks: SyncSender<Bytes>,
    frames: Receiver<io::Result<Bytes>>,
}

impl Lane {
    fn start<'scope>(scope: &'scope Scope<'scope, '_>, level: i32) -> Self {
        let (blocks, given) = sync_channel::<Bytes>(IN_HAND);
        let (made, frames) = sync_channel(IN_HAND);
        scope.spawn(move || {
            let mut compressor = match zstd::bulk::Compressor::new(level) {
                Ok(compressor) => compressor,
                Err(e) => return drop(made.send(Err(e))),
            };
            let buffers = Recycled::new(IN_HAND);
            for block in given {
                let bound = zstd::zstd_safe::compress_bound(block.len());
                let frame = buffers.filled(bound, |frame| compressor.compress_to_buffer(&block, frame));
                if made.send(frame).is_err() {
                    // Nobody waits for it: the reader failed and says why.
                    return;
                }
            }
        });
        Self { blocks, frames }
    }

    fn frame(&self) -> io::Result<Bytes> {
        self.frames.recv().unwrap_or_else(|_| Err(died()))
    }
}

fn died() -> io::Error {
    io::Error::other("a compressing thread died")
}

/// Compresses blocks by so many threads (at least one) and hands the frames to `out` in the blocks' order.
pub(super) fn compress(
    blocks: impl Iterator<Item = Bytes>,
    level: i32,
    workers: u32,
    mut out: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    std::thread::scope(|scope| {
        let lanes: Vec<Lane> = (0..workers.max(1)).map(|_| Lane::start(scope, level)).collect();
        let lane = |turn: usize| &lanes[turn % lanes.len()];
        // Blocks are given out in turns, and frames taken back in the same turns: so they keep their order.
        let (mut given, mut taken) = (0, 0);
        let mut blocks = blocks.peekable();
        // Without any frame it would be no zstd.
        let nothing = blocks.peek().is_none().then(Bytes::new);
        for block in nothing.into_iter().chain(blocks) {
            if given - taken == IN_HAND * lanes.len() {
                out(&lane(taken).frame()?)?;
                taken += 1;
            }
            lane(given).blocks.send(block).map_err(|_| died())?;
            given += 1;
        }
        while taken < given {
            out(&lane(taken).frame()?)?;
            taken += 1;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    fn packed(blocks: &[Vec<u8>], workers: u32) -> Vec<u8> {
        let mut all = Vec::new();
        compress(blocks.iter().cloned().map(Bytes::from), 1, workers, |frame| {
            all.extend_from_slice(frame);
            Ok(())
        })
        .unwrap();
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_decoder_reads_the_blocks_as_one_stream(
            blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3000), 0..20),
            workers in 0u32..5,
        ) {
            let mut plain = Vec::new();
            zstd::Decoder::new(&packed(&blocks, workers)[..]).unwrap().read_to_end(&mut plain).unwrap();
            prop_assert_eq!(plain, blocks.concat());
        }
    }

    #[test]
    fn nothing_at_all_is_a_stream_too() {
        let mut plain = Vec::new();
        zstd::Decoder::new(&packed(&[], 2)[..]).unwrap().read_to_end(&mut plain).unwrap();
        assert!(plain.is_empty());
    }

    #[test]
    fn what_is_written_depends_on_the_blocks_and_not_on_the_threads() {
        let blocks: Vec<Vec<u8>> = (0..50u8).map(|n| vec![n; 10_000 + usize::from(n)]).collect();
        assert_eq!(packed(&blocks, 1), packed(&blocks, 4));
    }

    #[test]
    fn a_reader_that_fails_ends_it_with_its_error() {
        let endless = std::iter::repeat_n(Bytes::from(vec![7; 1000]), 1_000_000);
        let failed = compress(endless, 1, 3, |_| Err(io::ErrorKind::StorageFull.into())).unwrap_err();
        assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
    }
}

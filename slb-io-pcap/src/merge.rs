//! Several captures, one for each port of a node, merged in the order of their timestamps.

use std::collections::VecDeque;

use slb_core::{Instant, PortId};

use crate::capture::FRAME_LEN;
use crate::error::ReadError;
use crate::reader::{Next, Reader};

/// Captures of several ports, read packet by packet in order.
#[derive(Debug)]
pub(crate) struct Merge {
    inputs: Vec<Input>,
    /// Errors of damaged inputs, reported once the others are at their end.
    damaged: VecDeque<ReadError>,
}

#[derive(Debug)]
struct Input {
    port: PortId,
    reader: Reader,
    /// The next item; the bytes of a packet are in `bytes`.
    ahead: Option<Next>,
    bytes: Vec<u8>,
}

impl Merge {
    pub(crate) fn new(inputs: Vec<(PortId, Reader)>) -> Self {
        let inputs = inputs.into_iter().map(|(port, reader)| Input {
            port,
            reader,
            ahead: None,
            bytes: vec![0; FRAME_LEN],
        });
        Self {
            inputs: inputs.collect(),
            damaged: VecDeque::new(),
        }
    }

    /// Pads packets that a snap length cut to their original length.
    pub(crate) fn fill_cut(&mut self) {
        for input in &mut self.inputs {
            input.reader.fill_cut();
        }
    }

    /// Returns true if no error waits for its turn.
    pub(crate) fn has_no_error(&self) -> bool {
        self.damaged.is_empty()
    }

    /// Bytes of all files read so far.
    pub(crate) fn offset(&self) -> u64 {
        self.inputs.iter().map(|input| input.reader.offset()).sum()
    }

    /// Reads the next packet into `buffer`, unless it was captured after `until`, and returns its
    /// port. Among packets with equal timestamps, the one of the earlier input comes first.
    ///
    /// # Errors
    /// An input is damaged, and all others are at their end or damaged, too: each has its turn.
    pub(crate) fn next(
        &mut self,
        buffer: &mut [u8],
        until: Option<Instant>,
    ) -> Result<(PortId, Next), ReadError> {
        let mut first: Option<(Instant, &mut Input)> = None;
        for (place, input) in self.inputs.iter_mut().enumerate() {
            match input.look_ahead() {
                Ok(Next::Packet { timestamp, .. }) => {
                    if first
                        .as_ref()
                        .is_none_or(|(earliest, _)| timestamp < *earliest)
                    {
                        first = Some((timestamp, input));
                    }
                }
                Ok(Next::End) => {}
                Ok(left_out) => {
                    input.ahead = None;
                    return Ok((input.port, left_out));
                }
                Err(error) => {
                    self.damaged.push_back(ReadError {
                        input: place,
                        ..error
                    });
                    input.ahead = Some(Next::End);
                }
            }
        }
        let Some((timestamp, input)) = first else {
            return match self.damaged.pop_front() {
                Some(error) => Err(error),
                None => Ok((PortId(0), Next::End)),
            };
        };
        if until.is_some_and(|until| timestamp > until) {
            return Ok((input.port, Next::Later));
        }
        Ok((input.port, input.take(buffer)))
    }
}

impl Input {
    fn look_ahead(&mut self) -> Result<Next, ReadError> {
        if let Some(next) = self.ahead {
            return Ok(next);
        }
        let next = self.reader.next(&mut self.bytes, None)?;
        self.ahead = Some(next);
        Ok(next)
    }

    /// Returns the packet that was read ahead.
    fn take(&mut self, buffer: &mut [u8]) -> Next {
        let next = self.ahead.take().unwrap_or(Next::End);
        if let Next::Packet { len, .. } = next {
            match (buffer.get_mut(..len), self.bytes.get(..len)) {
                (Some(to), Some(from)) => to.copy_from_slice(from),
                _ => return Next::TooLong,
            }
        }
        next
    }
}

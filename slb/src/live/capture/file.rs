//! The capture in pcapng, block by block.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use slb_control::Config;
use slb_core::observe::{Observe as _, Trail};
use slb_core::{Instant, PortId, Verdict};
use slb_io_pcap::{Format, Note, Writer};

use super::Chunk;
use super::options::Options;
use crate::explain::comment;
use crate::live::answers::port_name;

/// Bytes that a writer has written and that were not taken yet.
#[derive(Clone, Default)]
struct Buffer(Rc<RefCell<Vec<u8>>>);

impl io::Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A capture in pcapng, block by block.
pub(super) struct File {
    buffer: Buffer,
    writer: Writer<Buffer>,
    /// The interface of each port.
    interfaces: Vec<(PortId, u32)>,
    pub(super) packets: u64,
    /// Bytes that were taken.
    pub(super) written: u64,
}

impl File {
    pub(super) fn new() -> io::Result<Self> {
        let buffer = Buffer::default();
        Ok(Self {
            writer: Writer::new(buffer.clone(), Format::PcapNg)?,
            buffer,
            interfaces: Vec::new(),
            packets: 0,
            written: 0,
        })
    }

    pub(super) fn take(&mut self) -> Vec<u8> {
        let bytes = std::mem::take(&mut *self.buffer.0.borrow_mut());
        self.written += bytes.len() as u64;
        bytes
    }

    fn interface(&mut self, config: &Config, port: PortId) -> io::Result<u32> {
        if let Some((_, number)) = self.interfaces.iter().find(|(known, _)| *known == port) {
            return Ok(*number);
        }
        let number = self.writer.add_interface(&port_name(config, port))?;
        self.interfaces.push((port, number));
        Ok(number)
    }

    /// Adds the packets of a chunk. `own` is the configuration that processed them, if it is still known; names of
    /// ports are of `config`, the present one.
    pub(super) fn add(
        &mut self,
        own: Option<&Config>,
        config: &Config,
        chunk: &Chunk,
        options: &Options,
    ) -> io::Result<()> {
        for packet in &chunk.packets {
            let taken = self.written + self.buffer.0.borrow().len() as u64;
            if self.packets >= options.packets || taken >= options.bytes {
                break;
            }
            self.packets += 1;
            let mut trail = Trail::new(0);
            for &step in chunk.steps_of(packet) {
                trail.step(0, step);
            }
            let role = config.node.role.name();
            let text = match (packet.received, own) {
                (Some(_), Some(own)) => own.with_spec(|spec| comment(own, spec, &trail)),
                (Some(_), None) => {
                    let verdict = packet.verdict;
                    format!("{role}: verdict {verdict}; by a replaced configuration")
                }
                (None, _) => format!("{role}: made by itself"),
            };
            let at = Instant::from_nanos(chunk.epoch.saturating_add(packet.at.as_nanos()));
            let out_port = match packet.verdict {
                Verdict::Forward(port) => port,
                _ => packet.port,
            };
            let halves = [
                (packet.received, packet.port, false),
                (packet.sent, out_port, true),
            ];
            for (kept, port, is_sent) in halves {
                let Some(kept) = kept else { continue };
                let note = Note {
                    interface: self.interface(config, port)?,
                    is_sent: Some(is_sent),
                    comment: &text,
                };
                let cut = kept.len - kept.kept;
                self.writer
                    .write_noted(at, chunk.bytes_of(kept), cut, &note)?;
            }
        }
        Ok(())
    }
}

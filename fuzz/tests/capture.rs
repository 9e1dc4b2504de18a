//! Captures: whatever is in the file, the reader ends, and gives back what the writer wrote.

use std::io::Cursor;

use bolero::TypeGenerator;
use slb_core::Instant;
use slb_io_pcap::{FRAME_LEN, Format, Next, Reader, Writer};

/// Reads to the end, or to what cannot be read; the packets until there.
fn read(bytes: Vec<u8>) -> Vec<(Instant, Vec<u8>)> {
    let is_packed = bytes.starts_with(&[0x1f, 0x8b])
        || bytes.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || bytes.get(1..4) == Some(&[0x2a, 0x4d, 0x18]);
    let limit = if is_packed { 1 << 16 } else { bytes.len() };
    let mut packets = Vec::new();
    let Ok(mut reader) = Reader::new(Cursor::new(bytes)) else {
        return packets;
    };
    let mut buffer = vec![0; FRAME_LEN];
    // Each packet takes some bytes of the file, unless it is packed.
    for _ in 0..=limit {
        match reader.next(&mut buffer, None) {
            Ok(Next::Packet { timestamp, len, .. }) => {
                packets.push((timestamp, buffer[..len].to_vec()));
            }
            Ok(Next::Later | Next::UnknownLink(_) | Next::TooLong | Next::UnknownTime) => {}
            Ok(Next::End) | Err(_) => return packets,
        }
    }
    assert!(is_packed, "more packets than bytes");
    packets
}

#[derive(Clone, Debug, TypeGenerator)]
struct Written {
    is_pcapng: bool,
    packets: Vec<(u32, Vec<u8>)>,
    /// Bytes of the file that are changed.
    changes: Vec<(u16, u8)>,
    /// The length at which the file is cut off, if it is.
    cut: Option<u16>,
}

impl Written {
    fn file(&self) -> (Vec<u8>, Vec<(Instant, Vec<u8>)>) {
        let format = if self.is_pcapng {
            Format::PcapNg
        } else {
            Format::Pcap
        };
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, format).expect("memory");
        let mut packets = Vec::new();
        for (nanos, data) in &self.packets {
            // What is no frame is not read as one.
            let mut frame = vec![2; 14];
            frame.extend(data);
            let timestamp = Instant::from_nanos(1_000_000_000_000 + u64::from(*nanos));
            writer.write(timestamp, &frame).expect("memory");
            packets.push((timestamp, frame));
        }
        writer.finish().expect("memory");
        (file, packets)
    }
}

#[test]
fn arbitrary_bytes_are_read_or_refused() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|bytes| {
        read(bytes.clone());
        // Behind a header that is right.
        for magic in [
            &[0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0][..],
            &[0x0a, 0x0d, 0x0d, 0x0a],
        ] {
            read([magic, bytes].concat());
        }
    });
}

#[test]
fn what_was_written_is_read_and_what_is_damaged_ends() {
    bolero::check!().with_type::<Written>().for_each(|written| {
        let (mut file, packets) = written.file();
        assert_eq!(read(file.clone()), packets);
        if let Some(cut) = written.cut {
            file.truncate(usize::from(cut));
        }
        for &(at, value) in &written.changes {
            if let Some(byte) = file.get_mut(usize::from(at)) {
                *byte = value;
            }
        }
        read(file);
    });
}

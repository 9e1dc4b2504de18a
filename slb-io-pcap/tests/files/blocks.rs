//! Captures, block by block, in either byte order.

/// Numbers in either byte order.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    pub(super) is_big: bool,
}

pub(super) const ORDERS: [Order; 2] = [Order { is_big: false }, Order { is_big: true }];

impl Order {
    pub(super) fn two(self, number: u16) -> [u8; 2] {
        if self.is_big {
            number.to_be_bytes()
        } else {
            number.to_le_bytes()
        }
    }

    pub(super) fn four(self, number: u32) -> [u8; 4] {
        if self.is_big {
            number.to_be_bytes()
        } else {
            number.to_le_bytes()
        }
    }

    pub(super) fn eight(self, number: u64) -> [u8; 8] {
        if self.is_big {
            number.to_be_bytes()
        } else {
            number.to_le_bytes()
        }
    }

    /// A block of pcapng, its body padded.
    pub(super) fn block(self, kind: u32, body: &[u8]) -> Vec<u8> {
        let padded = body.len().next_multiple_of(4);
        let len = self.four(12 + padded as u32);
        let mut block = [&self.four(kind)[..], &len, body].concat();
        block.resize(8 + padded, 0);
        block.extend(len);
        block
    }

    pub(super) fn section(self) -> Vec<u8> {
        let body = [
            &self.four(0x1a2b_3c4d)[..],
            &self.two(1),
            &self.two(0),
            &[0xff; 8],
        ];
        self.block(0x0a0d_0d0a, &body.concat())
    }

    pub(super) fn option(self, code: u16, value: &[u8]) -> Vec<u8> {
        let mut option = [&self.two(code)[..], &self.two(value.len() as u16), value].concat();
        option.resize(option.len().next_multiple_of(4), 0);
        option
    }

    pub(super) fn interface(self, link: u16, snap_len: u32, options: &[u8]) -> Vec<u8> {
        let body = [&self.two(link)[..], &[0; 2], &self.four(snap_len), options];
        self.block(1, &body.concat())
    }

    /// An Enhanced Packet Block, or an obsolete one: they differ in how the interface is said.
    pub(super) fn packet(self, kind: u32, units: u64, data: &[u8], original: usize) -> Vec<u8> {
        let interface = [0; 4];
        let body = [
            &interface[..],
            &self.four((units >> 32) as u32),
            &self.four(units as u32),
            &self.four(data.len() as u32),
            &self.four(original as u32),
            data,
        ];
        self.block(kind, &body.concat())
    }

    pub(super) fn pcap(self, magic: u32, link: u32) -> Vec<u8> {
        let header = [&self.four(magic)[..], &self.two(2), &self.two(4), &[0; 8]];
        [&header.concat()[..], &self.four(65_535), &self.four(link)].concat()
    }

    pub(super) fn record(
        self,
        seconds: u32,
        fraction: u32,
        extra: usize,
        data: &[u8],
        original: usize,
    ) -> Vec<u8> {
        let lengths = [self.four(data.len() as u32), self.four(original as u32)].concat();
        let mut record = [&self.four(seconds)[..], &self.four(fraction), &lengths].concat();
        record.resize(record.len() + extra, 0);
        record.extend(data);
        record
    }
}

/// A UDP datagram over IPv4, of `len` bytes with all headers.
pub(super) fn datagram(len: usize) -> Vec<u8> {
    let ip_len = (len - 14) as u16;
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0];
    frame.extend(ip_len.to_be_bytes());
    frame.extend([
        0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2, 0, 9, 0, 9,
    ]);
    frame.extend((ip_len - 20).to_be_bytes());
    frame.extend([0, 0]);
    frame.extend((frame.len()..len).map(|at| at as u8));
    frame
}

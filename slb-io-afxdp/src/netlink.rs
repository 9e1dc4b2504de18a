//! Netlink requests to the kernel.

use std::io;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Opens a netlink socket.
pub(crate) fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Sends a request, and returns its answer of one message.
pub(crate) fn request(
    socket: &Socket,
    message: RouteNetlinkMessage,
    flags: u16,
) -> io::Result<Option<RouteNetlinkMessage>> {
    send(socket, message, flags)?;
    let (answer, _) = socket.recv_from_full()?;
    match read(&answer)?.payload {
        NetlinkPayload::InnerMessage(message) => Ok(Some(message)),
        NetlinkPayload::Error(error) if error.code.is_some() => Err(error.to_io()),
        _ => Ok(None),
    }
}

/// Sends a request, and returns its answer of many messages.
pub(crate) fn dump(
    socket: &Socket,
    message: RouteNetlinkMessage,
) -> io::Result<Vec<RouteNetlinkMessage>> {
    send(socket, message, NLM_F_REQUEST | NLM_F_DUMP)?;
    let mut all = Vec::new();
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = answer.as_slice();
        while !rest.is_empty() {
            let message = read(rest)?;
            // Each message is padded to a multiple of four bytes (RFC 3549 §2.3.2).
            let len = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(len.max(4)..).unwrap_or_default();
            match message.payload {
                NetlinkPayload::InnerMessage(message) => all.push(message),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                NetlinkPayload::Done(_) => return Ok(all),
                _ => {}
            }
        }
    }
}

fn send(socket: &Socket, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    let mut request = NetlinkMessage::new(header, NetlinkPayload::from(message));
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0).map(drop)
}

/// Sends a request that the kernel may refuse, and returns the kernel's message, if it has one;
/// `None` if the request succeeds.
pub(crate) fn refusal(
    message: RouteNetlinkMessage,
    flags: u16,
) -> io::Result<Option<(io::Error, Option<String>)>> {
    let socket = open()?;
    socket.set_ext_ack(true)?;
    send(&socket, message, flags)?;
    let (answer, _) = socket.recv_from_full()?;
    match read(&answer)?.payload {
        NetlinkPayload::Error(error) if error.code.is_some() => {
            Ok(Some((error.to_io(), said_by_kernel(&answer))))
        }
        _ => Ok(None),
    }
}

/// Returns the text of a netlink error message (the kernel's `NLMSGERR_ATTR_MSG`).
///
/// ```text
///  header │ error │ header of the request, and the rest of it unless capped │ attributes
///    16       4     16, or its whole length                                    length, type, text
/// ```
fn said_by_kernel(message: &[u8]) -> Option<String> {
    const CAPPED: u16 = 0x100; // NLM_F_CAPPED
    const HAS_ATTRIBUTES: u16 = 0x200; // NLM_F_ACK_TLVS
    const HEADER: usize = 16;
    const TEXT: u16 = 1; // NLMSGERR_ATTR_MSG
    let word = |at: usize| Some(u16::from_ne_bytes(*message.get(at..)?.first_chunk()?));
    let len = |at: usize| Some(u32::from_ne_bytes(*message.get(at..)?.first_chunk()?) as usize);
    let flags = word(6)?;
    if flags & HAS_ATTRIBUTES == 0 {
        return None;
    }
    let request = HEADER + 4;
    let request_len = if flags & CAPPED == 0 {
        len(request)?.next_multiple_of(4)
    } else {
        HEADER
    };
    let mut rest = message.get(request.checked_add(request_len)?..len(0)?)?;
    while let Some(header) = rest.first_chunk::<4>() {
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]);
        let value = rest.get(4..len)?;
        if kind == TEXT {
            let text = value.split(|&byte| byte == 0).next()?;
            return Some(String::from_utf8_lossy(text).into_owned());
        }
        rest = rest.get(len.next_multiple_of(4)..)?;
    }
    None
}

fn read(bytes: &[u8]) -> io::Result<NetlinkMessage<RouteNetlinkMessage>> {
    NetlinkMessage::deserialize(bytes).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error about a request of 24 bytes, with an offset and a text behind it.
    fn error(flags: u16, request: &[u8]) -> Vec<u8> {
        let text = b"Peer MTU is too large to set XDP\0";
        let mut message = vec![0; 16];
        message.extend((-34i32).to_ne_bytes());
        message.extend(request);
        for (kind, value) in [(2u16, &[9, 0, 0, 0][..]), (1, text)] {
            message.extend((4 + value.len() as u16).to_ne_bytes());
            message.extend(kind.to_ne_bytes());
            message.extend(value);
            message.resize(message.len().next_multiple_of(4), 0);
        }
        let len = message.len() as u32;
        message[..4].copy_from_slice(&len.to_ne_bytes());
        message[6..8].copy_from_slice(&flags.to_ne_bytes());
        message
    }

    #[test]
    fn the_kernels_words_are_found_behind_the_request() {
        let mut request = vec![7; 24];
        request[..4].copy_from_slice(&24u32.to_ne_bytes());
        let text = Some("Peer MTU is too large to set XDP".to_owned());
        let whole = error(0x200, &request);
        assert_eq!(said_by_kernel(&whole), text);
        assert_eq!(said_by_kernel(&error(0x300, &request[..16])), text);
        assert_eq!(said_by_kernel(&error(0, &request)), None);
        // Cut anywhere, it never fails.
        for len in 0..whole.len() {
            let _ = said_by_kernel(&whole[..len]);
        }
    }
}

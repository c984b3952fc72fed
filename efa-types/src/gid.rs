//! The address of a device.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::str::FromStr;

/// A GID: 16 bytes, written like an IPv6 address. EFA's are link-local (`fe80::/64`).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// Returns the GID of in-process device number `index`.
    pub const fn local(index: u32) -> Self {
        let [a, b, c, d] = index.to_be_bytes();
        Self([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x02, 0xef, 0xa0, 0, a, b, c, d])
    }

    /// Returns the GID of a device whose packets travel over UDP at this address. The GID contains the address, so two
    /// nodes need to exchange nothing else.
    pub const fn of_udp(addr: SocketAddrV4) -> Self {
        let [a, b, c, d] = addr.ip().octets();
        let [hi, lo] = addr.port().to_be_bytes();
        Self([0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x02, 0xef, hi, lo, a, b, c, d])
    }

    /// Returns the subnet prefix: the first eight bytes.
    pub fn subnet(self) -> u64 {
        u64::from_be_bytes(std::array::from_fn(|i| self.0[i]))
    }

    /// Returns the same device address in subnet number `number`. [`local`](Self::local) and [`of_udp`](Self::of_udp)
    /// return addresses in subnet 0.
    pub const fn in_subnet(mut self, number: u16) -> Self {
        [self.0[6], self.0[7]] = number.to_be_bytes();
        self
    }

    /// Returns the UDP address in a GID that [`of_udp`](Self::of_udp) made, in any subnet; `None` for other GIDs.
    pub fn to_udp(self) -> Option<SocketAddr> {
        let [0xfe, 0x80, 0, 0, 0, 0, _, _, 0x02, 0xef, hi, lo, a, b, c, d] = self.0 else { return None };
        Some(SocketAddr::from((Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([hi, lo]))))
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        std::net::Ipv6Addr::from(self.0).fmt(f)
    }
}

impl fmt::Debug for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Gid {
    type Err = std::net::AddrParseError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<std::net::Ipv6Addr>().map(|ip| Self(ip.octets()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gid_carries_its_udp_address_and_reads_back_from_text() {
        let addr = SocketAddrV4::new(Ipv4Addr::new(127, 0, 0, 1), 47000);
        let gid = Gid::of_udp(addr);
        assert_eq!(gid.to_udp(), Some(SocketAddr::V4(addr)));
        assert_eq!(gid.to_string().parse(), Ok(gid));
        assert_eq!(gid.in_subnet(7).to_udp(), Some(SocketAddr::V4(addr)));
        assert_ne!(gid.in_subnet(7).subnet(), gid.subnet());
        assert_eq!("::1".parse::<Gid>().unwrap().to_udp(), None);
    }
}

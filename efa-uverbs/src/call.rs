//! A command in a program's memory: a header, and attributes, which are values, handles or places for answers.

use crate::abi::ioctl::{ATTR_DATA, ATTR_FLAGS, Attr, DRIVER_EFA, Header, MANDATORY, UHW_IN, UHW_OUT, VALID_OUTPUT};
use crate::caller::Caller;
use crate::errno::{Errno, Outcome, refuse};
use bytemuck::{NoUninit, Pod, Zeroable};

/// The maximum number of attributes of a command: its length in bytes is a 16-bit number.
const MAX_ATTRS: usize = (u16::MAX as usize - size_of::<Header>()) / size_of::<Attr>();

/// A command that was read from a program's memory.
pub(crate) struct Call<'a> {
    pub(crate) caller: &'a Caller,
    /// The address of the header in the program's memory.
    addr: u64,
    pub(crate) object: u16,
    pub(crate) method: u16,
    attrs: Vec<Attr>,
}

impl<'a> Call<'a> {
    /// Reads the command at `addr` of the caller's memory.
    pub(crate) fn read(caller: &'a Caller, addr: u64) -> Outcome<Self> {
        let header: Header = caller.read(addr)?;
        let count = usize::from(header.num_attrs);
        if count > MAX_ATTRS || usize::from(header.length) != size_of::<Header>() + count * size_of::<Attr>() {
            return refuse(Errno::INVAL, format!("{} bytes of command for {count} attributes", header.length));
        }
        if header.reserved1 != 0 || header.reserved2 != 0 {
            return refuse(Errno::PROTONOSUPPORT, "a newer kind of command");
        }
        if header.driver_id != DRIVER_EFA {
            return refuse(Errno::INVAL, format!("a command for driver {}, not {DRIVER_EFA}", header.driver_id));
        }
        let mut attrs = vec![Attr::zeroed(); count];
        caller.read_bytes(addr + size_of::<Header>() as u64, bytemuck::cast_slice_mut(&mut attrs))?;
        Ok(Self { caller, addr, object: header.object_id, method: header.method_id, attrs })
    }

    /// Refuses the command if it has a mandatory attribute that is neither in `known` nor exchanged between the
    /// provider and its driver.
    pub(crate) fn only(&self, known: &[u16]) -> Outcome<()> {
        let is_known = |id| known.contains(&id) || id == UHW_IN || id == UHW_OUT;
        match self.attrs.iter().find(|attr| attr.flags & MANDATORY != 0 && !is_known(attr.attr_id)) {
            None => Ok(()),
            Some(attr) => refuse(Errno::PROTONOSUPPORT, format!("attribute {:#x} is not known", attr.attr_id)),
        }
    }

    /// Returns an attribute and its address in the program's memory.
    fn find(&self, id: u16) -> Option<(u64, &Attr)> {
        let index = self.attrs.iter().position(|attr| attr.attr_id == id)?;
        Some((self.addr + (size_of::<Header>() + index * size_of::<Attr>()) as u64, &self.attrs[index]))
    }

    fn must_find(&self, id: u16) -> Outcome<(u64, &Attr)> {
        match self.find(id) {
            Some(found) => Ok(found),
            None => refuse(Errno::INVAL, format!("attribute {id:#x} is missing")),
        }
    }

    /// Returns `true` if the command has this attribute.
    pub(crate) fn has(&self, id: u16) -> bool {
        self.find(id).is_some()
    }

    /// Returns the number in an attribute: a value of at most eight bytes, a handle, or a descriptor's number.
    pub(crate) fn number(&self, id: u16) -> Outcome<u64> {
        let data = self.must_find(id)?.1.data;
        Ok(data)
    }

    /// Returns the number in an attribute, or `default` if the attribute is missing.
    pub(crate) fn number_or(&self, id: u16, default: u64) -> u64 {
        self.find(id).map_or(default, |(_, attr)| attr.data)
    }

    /// Returns the address and the number of an attribute's input bytes. Up to eight bytes are in the attribute itself.
    fn input(&self, id: u16) -> Option<(u64, usize)> {
        let (at, attr) = self.find(id)?;
        let len = usize::from(attr.len);
        Some((if len <= size_of::<u64>() { at + ATTR_DATA } else { attr.data }, len))
    }

    /// Reads the structure that an attribute contains or points to.
    pub(crate) fn structure<T: Pod>(&self, id: u16) -> Outcome<T> {
        match self.input(id) {
            Some((at, len)) if len >= size_of::<T>() => Ok(self.caller.read(at)?),
            Some((_, len)) => refuse(Errno::NOSPC, format!("attribute {id:#x} has {len} bytes of {}", size_of::<T>())),
            None => refuse(Errno::NOSPC, format!("attribute {id:#x} is missing")),
        }
    }

    /// Reads the provider's input to its driver. Fields that an older provider does not send are zero. Fields of a
    /// newer provider must be zero.
    pub(crate) fn driver_input<T: Pod>(&self) -> Outcome<T> {
        let mut value = T::zeroed();
        let Some((at, len)) = self.input(UHW_IN) else { return Ok(value) };
        let known = len.min(size_of::<T>());
        self.caller.read_bytes(at, &mut bytemuck::bytes_of_mut(&mut value)[..known])?;
        let mut rest = vec![0; len - known];
        self.caller.read_bytes(at + known as u64, &mut rest)?;
        if rest.iter().any(|&byte| byte != 0) {
            return refuse(Errno::INVAL, format!("libefa says more than is known here: {len} bytes of {known}"));
        }
        Ok(value)
    }

    /// Returns the number of bytes of the buffer that an attribute points to, or 0 if the attribute is missing.
    pub(crate) fn room(&self, id: u16) -> usize {
        self.find(id).map_or(0, |(_, attr)| attr.len.into())
    }

    /// Writes an answer to the buffer that an attribute points to. The answer is cut off if the buffer is too small,
    /// and the rest of the buffer is filled with zeros. Does nothing if the attribute is missing.
    pub(crate) fn put_bytes(&self, id: u16, answer: &[u8]) -> Outcome<()> {
        let Some((at, attr)) = self.find(id) else { return Ok(()) };
        let mut bytes = answer[..answer.len().min(attr.len.into())].to_vec();
        bytes.resize(attr.len.into(), 0);
        self.caller.write_bytes(attr.data, &bytes)?;
        self.caller.write_bytes(at + ATTR_FLAGS, &(attr.flags | VALID_OUTPUT).to_ne_bytes())
    }

    /// Writes a value to the buffer that an attribute points to, as [`put_bytes`](Self::put_bytes) does.
    pub(crate) fn put(&self, id: u16, answer: &impl NoUninit) -> Outcome<()> {
        self.put_bytes(id, bytemuck::bytes_of(answer))
    }

    /// Writes the driver's answer to the provider.
    pub(crate) fn put_driver(&self, answer: &impl NoUninit) -> Outcome<()> {
        self.put(UHW_OUT, answer)
    }

    /// Returns the address at which the program expects the number of a new object or descriptor.
    pub(crate) fn place(&self, id: u16) -> Outcome<u64> {
        Ok(self.must_find(id)?.0 + ATTR_DATA)
    }

    /// Writes the handle of a new object to an attribute.
    pub(crate) fn put_handle(&self, id: u16, handle: u32) -> Outcome<()> {
        self.caller.write_bytes(self.place(id)?, &u64::from(handle).to_ne_bytes())
    }

    /// Returns the address that an attribute points to, if there is room for this many bytes.
    pub(crate) fn target(&self, id: u16, bytes: usize) -> Outcome<u64> {
        let (_, attr) = self.must_find(id)?;
        if usize::from(attr.len) < bytes {
            return refuse(Errno::NOSPC, format!("attribute {id:#x} has room for {} bytes of {bytes}", attr.len));
        }
        Ok(attr.data)
    }
}

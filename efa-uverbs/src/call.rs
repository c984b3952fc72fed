//! A command as the program wrote it: a header, and attributes that are values, handles, or places for answers.

use crate::abi::ioctl::{ATTR_DATA, ATTR_FLAGS, Attr, DRIVER_EFA, Header, MANDATORY, UHW_IN, UHW_OUT, VALID_OUTPUT};
use crate::caller::Caller;
use crate::errno::{Errno, Outcome, refuse};
use bytemuck::{NoUninit, Pod, Zeroable};

/// Most attributes that a command can have: as many as its 16-bit length says at most.
const MAX_ATTRS: usize = (u16::MAX as usize - size_of::<Header>()) / size_of::<Attr>();

/// A command.
pub(crate) struct Call<'a> {
    pub(crate) caller: &'a Caller,
    /// Where the header is.
    addr: u64,
    pub(crate) object: u16,
    pub(crate) method: u16,
    attrs: Vec<Attr>,
}

impl<'a> Call<'a> {
    /// The command at `addr`.
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

    /// Refuses attributes that the program insists on and that are none of these, nor what goes between a provider and its driver.
    pub(crate) fn only(&self, known: &[u16]) -> Outcome<()> {
        let is_known = |id| known.contains(&id) || id == UHW_IN || id == UHW_OUT;
        match self.attrs.iter().find(|attr| attr.flags & MANDATORY != 0 && !is_known(attr.attr_id)) {
            None => Ok(()),
            Some(attr) => refuse(Errno::PROTONOSUPPORT, format!("attribute {:#x} is not known", attr.attr_id)),
        }
    }

    /// An attribute, and where it is.
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

    /// Whether an attribute is there.
    pub(crate) fn has(&self, id: u16) -> bool {
        self.find(id).is_some()
    }

    /// The number in an attribute: a value of at most eight bytes, a handle, or a descriptor's number.
    pub(crate) fn number(&self, id: u16) -> Outcome<u64> {
        let data = self.must_find(id)?.1.data;
        Ok(data)
    }

    /// The number in an attribute that may be missing.
    pub(crate) fn number_or(&self, id: u16, default: u64) -> u64 {
        self.find(id).map_or(default, |(_, attr)| attr.data)
    }

    /// Bytes that an attribute says, and where they are.
    fn input(&self, id: u16) -> Option<(u64, usize)> {
        let (at, attr) = self.find(id)?;
        let len = usize::from(attr.len);
        Some((if len <= size_of::<u64>() { at + ATTR_DATA } else { attr.data }, len))
    }

    /// The structure in an attribute.
    pub(crate) fn structure<T: Pod>(&self, id: u16) -> Outcome<T> {
        match self.input(id) {
            Some((at, len)) if len >= size_of::<T>() => Ok(self.caller.read(at)?),
            // What an older program does not say is zero; how little is too little is for the command.
            Some((_, len)) => refuse(Errno::NOSPC, format!("attribute {id:#x} has {len} bytes of {}", size_of::<T>())),
            None => refuse(Errno::NOSPC, format!("attribute {id:#x} is missing")),
        }
    }

    /// What the program's provider says to its driver. What it does not say is zero; more than is known must be zero.
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

    /// Bytes that there is room for where an attribute points to.
    pub(crate) fn room(&self, id: u16) -> usize {
        self.find(id).map_or(0, |(_, attr)| attr.len.into())
    }

    /// Puts an answer where an attribute says: as much as there is room for, and zeros in what room is left.
    pub(crate) fn put_bytes(&self, id: u16, answer: &[u8]) -> Outcome<()> {
        let Some((at, attr)) = self.find(id) else { return Ok(()) };
        let mut bytes = answer[..answer.len().min(attr.len.into())].to_vec();
        bytes.resize(attr.len.into(), 0);
        self.caller.write_bytes(attr.data, &bytes)?;
        self.caller.write_bytes(at + ATTR_FLAGS, &(attr.flags | VALID_OUTPUT).to_ne_bytes())
    }

    /// The same with a value.
    pub(crate) fn put(&self, id: u16, answer: &impl NoUninit) -> Outcome<()> {
        self.put_bytes(id, bytemuck::bytes_of(answer))
    }

    /// The driver's answer to the program's provider.
    pub(crate) fn put_driver(&self, answer: &impl NoUninit) -> Outcome<()> {
        self.put(UHW_OUT, answer)
    }

    /// Where the number of a new object or descriptor goes.
    pub(crate) fn place(&self, id: u16) -> Outcome<u64> {
        Ok(self.must_find(id)?.0 + ATTR_DATA)
    }

    /// Puts the handle of a new object.
    pub(crate) fn put_handle(&self, id: u16, handle: u32) -> Outcome<()> {
        self.caller.write_bytes(self.place(id)?, &u64::from(handle).to_ne_bytes())
    }

    /// Where an attribute points to.
    pub(crate) fn target(&self, id: u16, bytes: usize) -> Outcome<u64> {
        let (_, attr) = self.must_find(id)?;
        if usize::from(attr.len) < bytes {
            return refuse(Errno::NOSPC, format!("attribute {id:#x} has room for {} bytes of {bytes}", attr.len));
        }
        Ok(attr.data)
    }
}

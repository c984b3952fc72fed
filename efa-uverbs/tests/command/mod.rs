//! Commands in the kernel's format, written by hand with their numbers.

use std::fs::File;
use std::os::fd::AsRawFd;

/// Numbers of kinds of objects.
pub(crate) const PD: u16 = 1;
pub(crate) const QP: u16 = 4;
pub(crate) const MR: u16 = 7;

/// An error number (`errno`).
pub(crate) type Error = i32;

/// An attribute: its number, its length in bytes, and a value or an address.
#[derive(Clone, Copy)]
#[repr(C)]
struct Attr {
    id: u16,
    len: u16,
    flags: u16,
    reserved: u16,
    data: u64,
}

/// A command with the buffers that its attributes point to.
pub(crate) struct Command {
    object: u16,
    method: u16,
    attrs: Vec<Attr>,
    buffers: Vec<Vec<u8>>,
}

impl Command {
    pub(crate) const GET_CONTEXT: Self = Self::new(0, 3);

    pub(crate) const fn new(object: u16, method: u16) -> Self {
        Self { object, method, attrs: Vec::new(), buffers: Vec::new() }
    }

    /// A command of the older interface.
    pub(crate) fn older(number: u32) -> Self {
        Self::new(0, 0).number(2, number.into())
    }

    fn attr(mut self, id: u16, len: usize, data: u64) -> Self {
        self.attrs.push(Attr { id, len: len as u16, flags: 1, reserved: 0, data });
        self
    }

    pub(crate) fn number(self, id: u16, value: u64) -> Self {
        self.attr(id, 8, value)
    }

    /// Adds the attribute for the handle of a new object.
    pub(crate) fn handle(self, id: u16) -> Self {
        self.attr(id, 0, 0)
    }

    pub(crate) fn input_at(mut self, id: u16, bytes: &[u8]) -> Self {
        if bytes.len() <= 8 {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            return self.attr(id, bytes.len(), u64::from_ne_bytes(word));
        }
        self.buffers.push(bytes.to_vec());
        let data = self.buffers.last().unwrap().as_ptr() as u64;
        self.attr(id, bytes.len(), data)
    }

    pub(crate) fn output_at(mut self, id: u16, bytes: usize) -> Self {
        self.buffers.push(vec![0; bytes]);
        let data = self.buffers.last_mut().unwrap().as_mut_ptr() as u64;
        self.attr(id, bytes, data)
    }

    /// Adds the input of an older command.
    pub(crate) fn input(self, bytes: &[u8]) -> Self {
        self.input_at(0, bytes)
    }

    /// Adds room for the answer of an older command.
    pub(crate) fn output(self, bytes: usize) -> Self {
        self.output_at(1, bytes)
    }

    /// Sends the command to a device. Returns the first word of the last answer, or 0 if there is none.
    pub(crate) fn run(mut self, device: &File) -> Result<u32, Error> {
        let length = 24 + 16 * self.attrs.len() as u16;
        let header = [length, self.object, self.method, self.attrs.len() as u16, 0, 0, 0, 0, 17, 0, 0, 0];
        let mut bytes: Vec<u64> = header
            .chunks(4)
            .map(|words| words.iter().rev().fold(0, |word, &next| word << 16 | u64::from(next)))
            .collect();
        for attr in &self.attrs {
            bytes.push(u64::from(attr.id) | u64::from(attr.len) << 16 | u64::from(attr.flags) << 32);
            bytes.push(attr.data);
        }
        raw(device, bytes.as_mut_ptr().cast())?;
        let answer = self.buffers.pop().unwrap_or_default();
        Ok(answer.first_chunk().map_or(0, |word| u32::from_ne_bytes(*word)))
    }
}

/// Calls `ioctl` with this argument.
pub(crate) fn raw(device: &File, argument: *mut libc::c_void) -> Result<i32, Error> {
    // SAFETY: an invalid argument is refused with an error. A valid one names buffers that the `Command` keeps until
    // after this call.
    match unsafe { libc::ioctl(device.as_raw_fd(), 0xc018_1b01, argument) } {
        -1 => Err(errno()),
        result => Ok(result),
    }
}

pub(crate) fn errno() -> Error {
    std::io::Error::last_os_error().raw_os_error().unwrap()
}

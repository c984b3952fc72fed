//! `Display` of entries: every field with its place, its value and, where the number is not enough, its meaning.

use crate::bits::Field;
use crate::buf::field as buf_field;
use crate::cqe::{self, Cqe, Event};
use crate::layout::{Layout, Payload, RDMA_WRITE};
use crate::opcode::OpCode;
use crate::rx::{self, RxDesc};
use crate::wqe::{Wqe, field};
use crate::{DecodeError, SendWqe, Status};
use core::fmt::{self, Display, Formatter};

/// The page under construction: an entry's words and where the text goes.
struct Page<'a, 'f> {
    words: &'a [u64],
    out: &'a mut Formatter<'f>,
}

impl Page<'_, '_> {
    fn title(&mut self, title: fmt::Arguments<'_>) -> fmt::Result {
        writeln!(self.out, "{title}")
    }

    /// A field's line, with a remark behind the value.
    fn line(&mut self, field: Field, remark: impl Display) -> fmt::Result {
        let value = field.get(self.words);
        let (high, low) = field.bits_in_byte();
        write!(self.out, "  byte {:>3} ", field.byte())?;
        match (high, low) {
            (h, 0) if (h + 1).is_multiple_of(8) => self.out.write_str("     ")?,
            (h, l) if h == l => write!(self.out, "[{h}]  ")?,
            (h, l) => write!(self.out, "[{h}:{l}]")?,
        }
        write!(self.out, "  {:<24} ", field.name)?;
        match high - low + 1 {
            1..=16 => write!(self.out, "{value:<18}")?,
            _ => write!(self.out, "{value:<#18x}")?,
        }
        writeln!(self.out, " {remark}")
    }

    fn bare(&mut self, field: Field) -> fmt::Result {
        self.line(field, "")
    }

    /// Inline bytes, 16 a line.
    fn bytes(&mut self, first: usize, data: &[u8]) -> fmt::Result {
        for (i, row) in data.chunks(16).enumerate() {
            write!(self.out, "  byte {:>3}        inline_data             ", first + i * 16)?;
            for byte in row {
                write!(self.out, " {byte:02x}")?;
            }
            writeln!(self.out)?;
        }
        Ok(())
    }

    fn verdict<T>(&mut self, decoded: &Result<T, DecodeError>) -> fmt::Result {
        match decoded {
            Ok(_) => Ok(()),
            Err(e) => writeln!(self.out, "  MALFORMED: {e}"),
        }
    }

    fn local_buf(&mut self, word: usize) -> fmt::Result {
        self.line(buf_field::length(word), "bytes")?;
        self.bare(buf_field::lkey(word))?;
        self.bare(buf_field::addr(word))
    }

    fn remote_buf(&mut self, word: usize) -> fmt::Result {
        self.line(buf_field::remote_length(word), "bytes")?;
        self.bare(buf_field::rkey(word))?;
        self.bare(buf_field::remote_addr(word))
    }
}

/// An operation's name by its number, whatever the number.
fn op_name(bits: u64) -> &'static str {
    match OpCode::from_bits(bits) {
        Some(OpCode::Send) => "send",
        Some(OpCode::RdmaRead) => "RDMA read",
        Some(OpCode::RdmaWrite) => "RDMA write",
        None => "not an operation",
    }
}

fn yes(set: bool, text: &'static str) -> &'static str {
    if set { text } else { "" }
}

impl<const W: usize> Display for Wqe<W>
where
    Wqe<W>: SendWqe,
{
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let words = self.words();
        let decoded = self.decode();
        let mut page = Page { words, out: f };
        let op = field::OP_TYPE.get(words);
        page.title(format_args!("send WQE, {} bytes: {}", W * 8, op_name(op)))?;
        page.verdict(&decoded)?;
        let inline = field::INLINE_MSG.is_set(words);
        let has_imm = field::HAS_IMM.is_set(words);
        page.bare(field::REQ_ID)?;
        page.line(field::OP_TYPE, op_name(op))?;
        page.line(field::HAS_IMM, yes(has_imm, "immediate data is valid"))?;
        page.line(field::INLINE_MSG, yes(inline, "the payload is in the WQE"))?;
        page.line(field::META_DESC, "always 1")?;
        page.line(field::PHASE, if self.phase() { "an odd lap" } else { "an even lap" })?;
        page.line(field::FIRST, "always 1")?;
        page.line(field::LAST, "always 1")?;
        page.line(field::COMP_REQ, "wants a completion entry")?;
        page.bare(field::DEST_QP_NUM)?;
        page.line(field::LENGTH, if inline { "inline bytes" } else { "buffers" })?;
        if has_imm {
            page.bare(field::IMMEDIATE_DATA)?;
        }
        page.bare(field::AH)?;
        page.line(
            field::PROCESSING_HINTS,
            yes(field::PROCESSING_HINTS.get(words) & 1 != 0, "burst packets-per-second"),
        )?;
        page.bare(field::QKEY)?;
        if field::REQ_ID_EX.is_set(words) {
            page.line(field::REQ_ID_EX, "request id, high 48 bits")?;
        }
        for reserved in field::MUST_BE_ZERO {
            if reserved.is_set(words) {
                page.line(reserved, "must be zero")?;
            }
        }
        // Inline bytes stand where the first buffer would. A number that is no operation is shown as RDMA.
        let layout = OpCode::from_bits(op).map_or(RDMA_WRITE, Layout::of);
        if let Some(at) = layout.remote {
            page.remote_buf(at)?;
        }
        let (at, length) = (layout.payload, field::LENGTH.get(words));
        match layout.kind {
            Payload::Bufs { least, most, .. } if !inline => {
                for buf in 0..length.clamp(least, most) as usize {
                    page.local_buf(at + 2 * buf)?;
                }
            }
            _ => {
                let bytes = &self.as_bytes()[at * 8..];
                page.bytes(at * 8, &bytes[..bytes.len().min(length as usize)])?;
            }
        }
        Ok(())
    }
}

impl Display for RxDesc {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        use rx::field;
        let mut page = Page { words: self.words(), out: f };
        page.title(format_args!("receive descriptor, {} bytes", RxDesc::SIZE))?;
        page.verdict(&self.decode())?;
        page.bare(field::BUF_ADDR)?;
        page.bare(field::REQ_ID)?;
        page.line(field::LENGTH, "bytes")?;
        page.bare(field::LKEY)?;
        page.line(field::FIRST, yes(field::FIRST.is_set(self.words()), "first buffer of the receive"))?;
        page.line(field::LAST, yes(field::LAST.is_set(self.words()), "last buffer of the receive"))
    }
}

impl<const W: usize> Display for Cqe<W> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        use cqe::field;
        let words = self.words();
        let decoded = self.decode();
        let mut page = Page { words, out: f };
        let queue = field::Q_TYPE.get(words);
        let queue_name = match queue {
            cqe::SEND_QUEUE => "send queue",
            cqe::RECV_QUEUE => "receive queue",
            _ => "no queue",
        };
        page.title(format_args!("completion entry, {} bytes: {queue_name}, {}", W * 8, self.status()))?;
        page.verdict(&decoded)?;
        let op = field::OP_TYPE.get(words);
        let unsolicited = field::UNSOLICITED.is_set(words);
        page.line(field::REQ_ID, yes(unsolicited && queue == cqe::RECV_QUEUE, "meaningless: unsolicited"))?;
        page.line(field::STATUS, Remark(self.status()))?;
        page.bare(field::PHASE)?;
        page.line(field::Q_TYPE, queue_name)?;
        page.line(field::HAS_IMM, yes(field::HAS_IMM.is_set(words), "immediate data is valid"))?;
        page.line(field::OP_TYPE, op_name(op))?;
        page.line(field::UNSOLICITED, yes(unsolicited, "consumed no receive descriptor"))?;
        page.bare(field::QP_NUM)?;
        let Ok(completion) = decoded else { return Ok(()) };
        match completion.event {
            Event::Send { .. } => {
                if completion.req_id >> 16 != 0 {
                    page.line(field::REQ_ID_EX_LO, "request id 31:16")?;
                    page.line(field::REQ_ID_EX_HI, "request id 63:32")?;
                }
            }
            Event::Receive(r) => {
                page.line(field::LENGTH, "bytes, low 16 bits")?;
                page.line(field::AH, yes(r.ah.is_none(), "no address handle for the sender"))?;
                page.bare(field::SRC_QP_NUM)?;
                if r.imm.is_some() {
                    page.bare(field::IMM)?;
                }
                if W > 2 && r.op == OpCode::RdmaWrite {
                    page.line(field::LENGTH_HI, format_args!("{} bytes in all", r.length))?;
                }
                if let Some(gid) = r.src_gid {
                    write!(page.out, "  byte  16        src_addr                 ")?;
                    for pair in gid.chunks(2) {
                        write!(page.out, "{:02x}{:02x} ", pair[0], pair[1])?;
                    }
                    writeln!(page.out)?;
                }
            }
        }
        Ok(())
    }
}

/// A status with its usual cause, when there is something to say.
struct Remark(Status);

impl Display for Remark {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Status::Ok => f.write_str("ok"),
            status => write!(f, "{}: {}", status.meaning(), status.usual_cause()),
        }
    }
}

//! An assembler for the few BPF instructions that the programs beside the measured ones are made of
//! (Documentation/bpf/standardization/instruction-set.rst).

use std::os::fd::{AsRawFd, BorrowedFd};

/// An instruction as the kernel takes it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Insn {
    code: u8,
    /// Destination in the low half, source in the high one.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Width of a memory access.
#[derive(Clone, Copy)]
pub(crate) enum Width {
    /// 16 bits.
    Half = 0x08,
    /// 32 bits.
    Word = 0x00,
    /// 64 bits.
    Double = 0x18,
}

/// 32-bit operations; the upper half of the destination becomes zero.
#[derive(Clone, Copy)]
pub(crate) enum Op {
    Add = 0x00,
    Mul = 0x20,
    Div = 0x30,
    And = 0x50,
    Shr = 0x70,
    Mod = 0x90,
    Xor = 0xa0,
    Mov = 0xb0,
}

/// Helper numbers (include/uapi/linux/bpf.h).
pub(crate) const MAP_LOOKUP_ELEM: i32 = 1;
pub(crate) const TAIL_CALL: i32 = 12;

/// A program in the making. Registers are numbers: 0 result, 1–5 arguments, 6–9 kept over calls, 10 stack frame.
#[derive(Default)]
pub(crate) struct Asm {
    insns: Vec<Insn>,
}

impl Asm {
    fn put(&mut self, code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> &mut Self {
        self.insns.push(Insn {
            code,
            registers: dst | (src << 4),
            offset,
            immediate,
        });
        self
    }

    /// `dst = src`, 64 bits.
    pub(crate) fn copy(&mut self, dst: u8, src: u8) -> &mut Self {
        self.put(0xbf, dst, src, 0, 0)
    }

    /// `dst = dst op immediate`, 32 bits.
    pub(crate) fn op(&mut self, op: Op, dst: u8, immediate: u32) -> &mut Self {
        self.put(0x04 | op as u8, dst, 0, 0, immediate.cast_signed())
    }

    /// `dst = dst op src`, 32 bits.
    pub(crate) fn op_reg(&mut self, op: Op, dst: u8, src: u8) -> &mut Self {
        self.put(0x0c | op as u8, dst, src, 0, 0)
    }

    /// `dst = dst + immediate`, 64 bits: also for pointers.
    pub(crate) fn advance(&mut self, dst: u8, by: i32) -> &mut Self {
        self.put(0x07, dst, 0, 0, by)
    }

    /// `dst = *(src + offset)`.
    pub(crate) fn load(&mut self, width: Width, dst: u8, src: u8, offset: i16) -> &mut Self {
        self.put(0x61 | width as u8, dst, src, offset, 0)
    }

    /// `*(dst + offset) = src`.
    pub(crate) fn store(&mut self, width: Width, dst: u8, offset: i16, src: u8) -> &mut Self {
        self.put(0x63 | width as u8, dst, src, offset, 0)
    }

    /// `*(dst + offset) = immediate`.
    pub(crate) fn store_imm(&mut self, width: Width, dst: u8, offset: i16, imm: u32) -> &mut Self {
        self.put(0x62 | width as u8, dst, 0, offset, imm.cast_signed())
    }

    /// Turns the low `bits` (16 or 32) into network byte order.
    pub(crate) fn network_order(&mut self, dst: u8, bits: i32) -> &mut Self {
        self.put(0xdc, dst, 0, 0, bits)
    }

    /// Skips `count` instructions when `left > right`, 64 bits unsigned.
    pub(crate) fn skip_if_above(&mut self, left: u8, right: u8, count: i16) -> &mut Self {
        self.put(0x2d, left, right, count, 0)
    }

    /// Skips `count` instructions when the register is zero.
    pub(crate) fn skip_if_zero(&mut self, register: u8, count: i16) -> &mut Self {
        self.put(0x15, register, 0, count, 0)
    }

    /// `dst` = a map, as helpers want it (`BPF_PSEUDO_MAP_FD`).
    pub(crate) fn map(&mut self, dst: u8, map: BorrowedFd<'_>) -> &mut Self {
        self.put(0x18, dst, 1, 0, map.as_raw_fd())
            .put(0, 0, 0, 0, 0)
    }

    /// `dst` = address of the first value of an array (`BPF_PSEUDO_MAP_VALUE`).
    pub(crate) fn map_value(&mut self, dst: u8, map: BorrowedFd<'_>) -> &mut Self {
        self.put(0x18, dst, 2, 0, map.as_raw_fd())
            .put(0, 0, 0, 0, 0)
    }

    /// Calls a helper.
    pub(crate) fn call(&mut self, helper: i32) -> &mut Self {
        self.put(0x85, 0, 0, 0, helper)
    }

    /// Ends the program with a constant.
    pub(crate) fn exit(&mut self, result: u32) -> &mut Self {
        self.op(Op::Mov, 0, result).put(0x95, 0, 0, 0, 0)
    }

    /// Ends the program with what register 0 holds.
    pub(crate) fn exit_with_result(&mut self) -> &mut Self {
        self.put(0x95, 0, 0, 0, 0)
    }

    /// The finished program.
    pub(crate) fn insns(&self) -> &[Insn] {
        &self.insns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_have_the_kernels_encoding() {
        assert_eq!(size_of::<Insn>(), 8);
        let mut asm = Asm::default();
        asm.load(Width::Word, 2, 1, 76)
            .op(Op::Mov, 0, 7)
            .exit_with_result();
        let encoded: Vec<(u8, u8, i16, i32)> = asm
            .insns()
            .iter()
            .map(|insn| (insn.code, insn.registers, insn.offset, insn.immediate))
            .collect();
        // `r2 = *(u32 *)(r1 + 76)`, `w0 = 7`, `exit`, as bpftool and llvm-objdump print them.
        assert_eq!(
            encoded,
            [(0x61, 0x12, 76, 0), (0xb4, 0, 0, 7), (0x95, 0, 0, 0)]
        );
    }
}

"""Thumb instructions of a block of code, reduced to what the cycle models ask about."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from edgescale.core.errors import MissingDependencyError
from edgescale.rigs.toolchain import INSTALL_HINT


@dataclass(frozen=True)
class Instruction:
    """One decoded instruction.

    `group` is the key of a cycle table's row; `registers` how many a multiple transfer moves; `reads`
    and `writes` name registers (flags as "cpsr"); `address_reads` those that form a memory address.
    """

    address: int
    size: int
    mnemonic: str
    group: str
    registers: int
    reads: frozenset[str]
    writes: frozenset[str]
    address_reads: frozenset[str]


# Mnemonics without condition, width and type suffixes, by the group of the cost tables.
_MNEMONICS: dict[str, str] = {
    "alu": """
        mov movs movw movt mvn mvns add adds addw adc adcs adr sub subs subw sbc sbcs rsb rsbs neg negs cmp cmn tst teq
        and ands orr orrs orn orns eor eors bic bics lsl lsls lsr lsrs asr asrs ror rors rrx rrxs sxtb sxth uxtb uxth
        sxtab sxtah uxtab uxtah sxtb16 uxtb16 sxtab16 uxtab16 ubfx sbfx bfi bfc clz rbit rev rev16 revsh pkhbt pkhtb
        sel""",
    "saturate": """
        ssat usat ssat16 usat16 qadd qsub qdadd qdsub qadd8 qsub8 qadd16 qsub16 qasx qsax sadd8 sadd16 ssub8 ssub16
        sasx ssax uadd8 uadd16 usub8 usub16 uasx usax shadd8 shadd16 shsub8 shsub16 shasx shsax uhadd8 uhadd16 uhsub8
        uhsub16 uhasx uhsax uqadd8 uqadd16 uqsub8 uqsub16 uqasx uqsax usad8 usada8""",
    "multiply": "mul muls",
    "multiply_accumulate": "mla mls",
    "multiply_long": "smull umull",
    "multiply_accumulate_long": "smlal umlal umaal",
    "multiply_dsp": """
        smulbb smulbt smultb smultt smulwb smulwt smlabb smlabt smlatb smlatt smlawb smlawt smlalbb smlalbt smlaltb
        smlaltt smuad smuadx smusd smusdx smlad smladx smlsd smlsdx smlald smlaldx smlsld smlsldx smmul smmulr smmla
        smmlar smmls smmlsr""",
    "divide": "sdiv udiv",
    "load": "ldr ldrb ldrh ldrsb ldrsh ldrex ldrexb ldrexh lda ldab ldah",
    "load_dual": "ldrd",
    "load_multiple": "ldm ldmdb pop",
    "store": "str strb strh strex strexb strexh stl stlb stlh",
    "store_dual": "strd",
    "store_multiple": "stm stmdb push",
    "branch": "b",
    "branch_link": "bl",
    "branch_register": "bx bxns",
    "branch_link_register": "blx blxns",
    "compare_branch": "cbz cbnz",
    "table_branch": "tbb tbh",
    "it": "it itt ite ittt itte itet itee itttt ittte ittet ittee itett itete iteet iteee",
    "system": "mrs msr cps cpsid cpsie svc bkpt wfe wfi sev udf",
    "barrier": "dsb dmb isb clrex",
    "nop": "nop yield pld pli hint",
    "fp_alu": "vadd vsub vabs vneg vmaxnm vminnm vsel vseleq vselge vselgt vselvs",
    "fp_compare": "vcmp vcmpe",
    "fp_convert": """
        vcvt vcvtr vcvta vcvtn vcvtp vcvtm vcvtb vcvtt vrinta vrintn vrintp vrintm vrintx vrintz vrintr""",
    "fp_multiply": "vmul vnmul",
    "fp_multiply_accumulate": "vmla vmls vnmla vnmls vfma vfms vfnma vfnms",
    "fp_divide": "vdiv vsqrt",
    "fp_move": "vmov vmrs vmsr",
    "fp_load": "vldr",
    "fp_store": "vstr",
    "fp_load_multiple": "vldm vldmia vldmdb vpop",
    "fp_store_multiple": "vstm vstmia vstmdb vpush",
}
_GROUP_OF = {mnemonic: group for group, text in _MNEMONICS.items() for mnemonic in text.split()}
GROUPS = (*_MNEMONICS, "load_pc", "pop_pc", "move_pc", "store_register", "unknown")
_CONDITIONS = ("eq", "ne", "hs", "cs", "lo", "cc", "mi", "pl", "vs", "vc", "hi", "ls", "ge", "lt", "gt", "le", "al")


def group_of(mnemonic: str) -> str:
    """The cost group of a mnemonic as capstone prints it (`ldrb.w`, `addseq`, `vadd.f32`); "unknown" otherwise."""
    base = mnemonic.split(".")[0].lower()
    if base in _GROUP_OF:
        return _GROUP_OF[base]
    if base[-2:] in _CONDITIONS and base[:-2] in _GROUP_OF:
        return _GROUP_OF[base[:-2]]
    # ldmia and stmia are the default forms, printed with or without their suffix.
    if base[-2:] == "ia" and base[:-2] in _GROUP_OF:
        return _GROUP_OF[base[:-2]]
    return "unknown"


@cache
def _disassembler() -> Any:
    try:
        import capstone
    except ImportError:
        raise MissingDependencyError("capstone", INSTALL_HINT) from None
    engine = capstone.Cs(capstone.CS_ARCH_ARM, capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS | capstone.CS_MODE_V8)
    engine.detail = True
    return engine


def decode(code: bytes, address: int) -> list[Instruction]:
    """Decode a straight run of Thumb code starting at `address`.

    Bytes that capstone cannot decode become one instruction of group "unknown" a halfword or word, so
    that the count of instructions stays exact.
    """
    found: list[Instruction] = []
    offset = 0
    while offset < len(code):
        decoded = False
        for native in _disassembler().disasm(code[offset:], address + offset):
            found.append(_reduce(native))
            offset += native.size
            decoded = True
        if offset < len(code) and not decoded:
            half = int.from_bytes(code[offset : offset + 2], "little")
            size = 4 if half >= 0xE800 else 2
            nothing: frozenset[str] = frozenset()
            found.append(Instruction(address + offset, size, "?", "unknown", 0, nothing, nothing, nothing))
            offset += size
    return found


def _reduce(native: Any) -> Instruction:
    from capstone.arm import ARM_OP_MEM, ARM_OP_REG

    group = group_of(native.mnemonic)
    read_ids, write_ids = native.regs_access()
    reads = frozenset(native.reg_name(r) for r in read_ids)
    writes = frozenset(native.reg_name(r) for r in write_ids)
    address_reads: set[str] = set()
    indexed = False
    registers = 0
    for operand in native.operands:
        if operand.type == ARM_OP_MEM:
            address_reads.update(native.reg_name(r) for r in (operand.mem.base, operand.mem.index) if r)
            indexed = operand.mem.index != 0
        elif operand.type == ARM_OP_REG:
            registers += 1
    named = native.mnemonic.split(".")[0]
    if group in ("load_multiple", "store_multiple", "fp_load_multiple", "fp_store_multiple"):
        if not named.startswith(("push", "pop", "vpush", "vpop")):
            registers -= 1  # the base
            address_reads.add(native.reg_name(native.operands[0].reg))
        if group.startswith("fp_") and native.reg_name(native.operands[-1].reg).startswith("d"):
            registers *= 2
    elif group in ("fp_load", "fp_store"):
        registers = 2 if native.reg_name(native.operands[0].reg).startswith("d") else 1
    if "pc" in writes:
        group = {"load": "load_pc", "load_multiple": "pop_pc", "alu": "move_pc"}.get(group, group)
    if group == "store" and indexed:
        group = "store_register"
    return Instruction(
        native.address, native.size, native.mnemonic, group, registers, reads, writes, frozenset(address_reads)
    )

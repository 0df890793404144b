/* The harness on RV32: stacks, semihosting, traps. */
#include "harness.h"

    .option arch, +zicsr
    .section .text.es_harness, "ax"

/* In place of the model's run function, called by main: keeps its stack pointer, never returns. */
    .globl es_harness_enter
    .type es_harness_enter, @function
es_harness_enter:
    la t0, es_harness_model_stack
    sw sp, 0(t0)
    la sp, es_harness_stack + ES_HARNESS_STACK_BYTES
    call es_harness_main
    .size es_harness_enter, . - es_harness_enter

    .globl es_harness_call
    .type es_harness_call, @function
es_harness_call:
    addi sp, sp, -16
    sw ra, 12(sp)
    sw s0, 8(sp)
    mv s0, sp
    la t0, es_harness_model_stack
    lw sp, 0(t0)
    jalr a0
    mv sp, s0
    lw ra, 12(sp)
    lw s0, 8(sp)
    addi sp, sp, 16
    ret
    .size es_harness_call, . - es_harness_call

    .globl es_harness_mark
    .type es_harness_mark, @function
es_harness_mark:
    ret
    .size es_harness_mark, . - es_harness_mark

    .globl es_harness_nothing
    .type es_harness_nothing, @function
es_harness_nothing:
    ret
    .size es_harness_nothing, . - es_harness_nothing

/* Instructions retired: exact where QEMU counts them (-icount). */
    .globl es_harness_clock_start
    .type es_harness_clock_start, @function
es_harness_clock_start:
    la t0, es_harness_clock_begin
    csrr t1, minstret
    sw t1, 0(t0)
    ret
    .size es_harness_clock_start, . - es_harness_clock_start

    .globl es_harness_clock
    .type es_harness_clock, @function
es_harness_clock:
    csrr a0, minstret
    la t0, es_harness_clock_begin
    lw t0, 0(t0)
    sub a0, a0, t0
    ret
    .size es_harness_clock, . - es_harness_clock

    .section .bss.es_harness, "aw", @nobits
    .balign 4
es_harness_clock_begin:
    .space 4
    .section .text.es_harness, "ax"

/* The sequence that means semihosting: uncompressed and within one page (RISC-V semihosting, section 2.8). */
    .globl es_harness_semihost
    .type es_harness_semihost, @function
    .balign 16
es_harness_semihost:
    .option push
    .option norvc
    slli zero, zero, 0x1f
    ebreak
    srai zero, zero, 7
    .option pop
    ret
    .size es_harness_semihost, . - es_harness_semihost

    .globl es_board_fault
    .type es_board_fault, @function
    .balign 4
es_board_fault:
    la sp, es_harness_stack + ES_HARNESS_STACK_BYTES
    mv a2, ra
    csrr a0, mcause
    csrr a1, mepc
    mv a3, a0
    csrr a4, mtval
    call es_harness_report
    .size es_board_fault, . - es_board_fault

/* The harness on Arm Cortex-M: stacks, semihosting, faults. Thumb-1 instructions only, for every core. */
#include "harness.h"

    .syntax unified
    .thumb
    .section .text.es_harness, "ax"

/* In place of the model's run function, called by main: keeps its stack pointer, never returns. */
    .globl es_harness_enter
    .type es_harness_enter, %function
    .thumb_func
es_harness_enter:
    ldr r0, =es_harness_model_stack
    mov r1, sp
    str r1, [r0]
    ldr r0, =es_harness_stack + ES_HARNESS_STACK_BYTES
    mov sp, r0
    bl es_harness_main
    .size es_harness_enter, . - es_harness_enter

    .globl es_harness_call
    .type es_harness_call, %function
    .thumb_func
es_harness_call:
    push {r4, lr}
    mov r4, sp
    ldr r1, =es_harness_model_stack
    ldr r1, [r1]
    mov sp, r1
    blx r0
    mov sp, r4
    pop {r4, pc}
    .size es_harness_call, . - es_harness_call

    .globl es_harness_mark
    .type es_harness_mark, %function
    .thumb_func
es_harness_mark:
    bx lr
    .size es_harness_mark, . - es_harness_mark

    .globl es_harness_nothing
    .type es_harness_nothing, %function
    .thumb_func
es_harness_nothing:
    bx lr
    .size es_harness_nothing, . - es_harness_nothing

/* SysTick counts down from 2^24 - 1 on the core's clock. Writing its value sets it to zero, from which its first
 * tick reloads it, and clears the flag that tells of a count past zero. */
    .globl es_harness_clock_start
    .type es_harness_clock_start, %function
    .thumb_func
es_harness_clock_start:
    ldr r0, =0xE000E010
    ldr r1, =0x00FFFFFF
    str r1, [r0, #4]
    str r1, [r0, #8]
    movs r1, #5
    str r1, [r0]
1:  ldr r1, [r0, #8]
    cmp r1, #0
    beq 1b
    bx lr
    .size es_harness_clock_start, . - es_harness_clock_start

    .globl es_harness_clock
    .type es_harness_clock, %function
    .thumb_func
es_harness_clock:
    ldr r2, =0xE000E010
    ldr r0, =0x00FFFFFF
    ldr r1, [r2, #8]
    subs r0, r1
    ldr r1, [r2]
    lsrs r1, #17 /* COUNTFLAG, bit 16, into the carry */
    bcc 1f
    movs r0, #0
    mvns r0, r0
1:  bx lr
    .size es_harness_clock, . - es_harness_clock

    .globl es_harness_semihost
    .type es_harness_semihost, %function
    .thumb_func
es_harness_semihost:
    bkpt 0xab
    bx lr
    .size es_harness_semihost, . - es_harness_semihost

/* Every exception: reports what the core stacked (r0..r3, r12, lr, pc, xpsr), if its stack is memory at all. */
    .globl es_board_fault
    .type es_board_fault, %function
    .thumb_func
es_board_fault:
    mov r4, sp
    ldr r0, =es_harness_stack + ES_HARNESS_STACK_BYTES
    mov sp, r0
    mrs r0, ipsr
    movs r1, #0
    movs r2, #0
    ldr r3, =es_board_stack_limit
    cmp r4, r3
    blo 1f
    ldr r3, =es_board_stack_top - 32
    cmp r4, r3
    bhi 1f
    ldr r1, [r4, #24]
    ldr r2, [r4, #20]
1:  ldr r3, =0xE000ED28 /* CFSR, then BFAR; both read as zero on ARMv6-M */
    ldr r4, [r3, #16]
    ldr r3, [r3]
    sub sp, #8
    str r4, [sp]
    bl es_harness_report
    .size es_board_fault, . - es_board_fault
    .pool

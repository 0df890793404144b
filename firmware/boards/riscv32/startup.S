/* Start-up of an RV32 core in machine mode without any libc: stack, global pointer, traps, .data, .bss, main.
 *
 * Symbols beginning with es_board_ come from link.ld. Every trap ends in es_board_fault: an application that
 * uses interrupts defines its own. */
    .option arch, +zicsr

    .section .reset, "ax"
    .globl Reset_Handler
    .type Reset_Handler, @function
Reset_Handler:
    .option push
    .option norelax /* the global pointer cannot be computed relative to itself */
    la gp, __global_pointer$
    .option pop
    la sp, es_board_stack_top
    la t0, es_board_fault
    csrw mtvec, t0 /* direct mode: the two low bits are zero */

    la t0, es_board_data_load
    la t1, es_board_data_start
    la t2, es_board_data_end
    bgeu t1, t2, 2f
1:  lw t3, 0(t0)
    sw t3, 0(t1)
    addi t0, t0, 4
    addi t1, t1, 4
    bltu t1, t2, 1b

2:  la t1, es_board_bss_start
    la t2, es_board_bss_end
    bgeu t1, t2, 4f
3:  sw zero, 0(t1)
    addi t1, t1, 4
    bltu t1, t2, 3b

4:  call main
    tail es_board_fault /* which may lie anywhere */
    .size Reset_Handler, . - Reset_Handler

/* A fault stops here, where a debugger finds it. */
    .section .text.es_board_fault, "ax"
    .balign 4
    .weak es_board_fault
    .type es_board_fault, @function
es_board_fault:
    j es_board_fault
    .size es_board_fault, . - es_board_fault

/* Start-up of an Arm Cortex-M without any libc: vectors, FPU and MVE, .data, .bss, main.
 *
 * Works for ARMv6-M, ARMv7-M, ARMv8-M and ARMv8.1-M. Symbols beginning with es_board_ come from link.ld. The
 * vector table holds the sixteen architectural entries; a board that uses interrupts replaces it. */
#include <stdint.h>

extern uint32_t es_board_stack_top;
extern uint32_t es_board_data_load;
extern uint32_t es_board_data_start;
extern uint32_t es_board_data_end;
extern uint32_t es_board_bss_start;
extern uint32_t es_board_bss_end;

int main(void);
void Reset_Handler(void);
void es_board_fault(void);

/* A fault or an unexpected exception stops here, where a debugger finds it. An application may define its own. */
__attribute__((weak)) void es_board_fault(void)
{
    for (;;) {
    }
}

void Reset_Handler(void)
{
#if defined(__ARM_FP) || defined(__ARM_FEATURE_MVE)
    /* CPACR: full access to CP10 and CP11, the FPU and MVE (Armv7-M ARM, B3.2.20; Armv8-M ARM, D1.2.13). */
    *(volatile uint32_t *)0xE000ED88u |= 0xFu << 20;
    __asm volatile("dsb\n\tisb" ::: "memory");
#endif
#if defined(__ARM_FEATURE_MVE)
    /* CCR.LOB: loops of the low-overhead-branch extension run without branching (Armv8-M ARM, D1.2.9). They
     * compute the same without it, only slower. */
    *(volatile uint32_t *)0xE000ED14u |= 1u << 19;
    __asm volatile("dsb\n\tisb" ::: "memory");
#endif
    const uint32_t *source = &es_board_data_load;
    for (uint32_t *word = &es_board_data_start; word < &es_board_data_end; ++word) {
        *word = *source++;
    }
    for (uint32_t *word = &es_board_bss_start; word < &es_board_bss_end; ++word) {
        *word = 0u;
    }
    (void)main();
    es_board_fault();
}

typedef union {
    void (*handler)(void);
    const void *stack;
} es_board_vector;

__attribute__((section(".vectors"), used)) static const es_board_vector es_board_vectors[16] = {
    {.stack = &es_board_stack_top},
    {.handler = Reset_Handler},
    {.handler = es_board_fault}, /* NMI */
    {.handler = es_board_fault}, /* HardFault */
    {.handler = es_board_fault}, /* MemManage */
    {.handler = es_board_fault}, /* BusFault */
    {.handler = es_board_fault}, /* UsageFault */
    {.handler = es_board_fault}, /* SecureFault */
    {.handler = 0},
    {.handler = 0},
    {.handler = 0},
    {.handler = es_board_fault}, /* SVCall */
    {.handler = es_board_fault}, /* DebugMonitor */
    {.handler = 0},
    {.handler = es_board_fault}, /* PendSV */
    {.handler = es_board_fault}, /* SysTick */
};

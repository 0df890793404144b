# Toolchain file for a Cortex-M with GCC for Arm:
#   cmake -DCMAKE_TOOLCHAIN_FILE=.../arm-none-eabi.cmake -DEDGESCALE_CPU_FLAGS="-mcpu=cortex-m4 -mthumb" ...
set(CMAKE_SYSTEM_NAME Generic)
set(CMAKE_SYSTEM_PROCESSOR arm)
# Start-up code and a linker script are the project's own: compilers are tried without linking.
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY)
set(EDGESCALE_CPU_FLAGS "" CACHE STRING "What the compiler must know of the core, e.g. -mcpu=cortex-m4 -mthumb")
set(CMAKE_TRY_COMPILE_PLATFORM_VARIABLES EDGESCALE_CPU_FLAGS)
# As part of the compiler's command (CMake 3.19), so that -DCMAKE_C_FLAGS=... does not drop them.
separate_arguments(cpu_flags UNIX_COMMAND "${EDGESCALE_CPU_FLAGS}")
set(CMAKE_C_COMPILER arm-none-eabi-gcc ${cpu_flags})
set(CMAKE_CXX_COMPILER arm-none-eabi-g++ ${cpu_flags})
set(CMAKE_ASM_COMPILER arm-none-eabi-gcc ${cpu_flags})

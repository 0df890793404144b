# find_package(edgescale): models compiled by edgescale as libraries of a CMake project.
#
#   find_package(edgescale REQUIRED CONFIG)         # -Dedgescale_DIR=$(edgescale export --firmware-dir)/cmake
#   edgescale_add_model(keywords bundle)            # a bundle: its choice for its microcontroller
#   edgescale_add_model(keywords bundle TARGET cortex-m4-stm32l4r5 VARIANT net-w8a8)
#   edgescale_add_model(keywords folder)            # one artifact, as it lies in a bundle or as exported
#   target_link_libraries(app PRIVATE keywords)
#
# The header is es_<model>.h as edgescale named it; edgescale/es_quantize.h converts real numbers. Every file of a
# bundle's entry is compared with its SHA-256, and the project configures again when the bundle changes.
if(CMAKE_VERSION VERSION_LESS 3.19)
    set(edgescale_FOUND FALSE)
    set(edgescale_NOT_FOUND_MESSAGE "edgescale needs CMake 3.19 or newer, this is ${CMAKE_VERSION}")
    return()
endif()

set(EDGESCALE_OPTIMIZE "-O2" CACHE STRING "Optimization of compiled models; empty: as the build type says")

# The applications' header: beside this file when installed, firmware/include in the source tree.
foreach(edgescale_candidate IN ITEMS "${CMAKE_CURRENT_LIST_DIR}/include" "${CMAKE_CURRENT_LIST_DIR}/../include")
    if(EXISTS "${edgescale_candidate}/edgescale/es_quantize.h")
        get_filename_component(edgescale_candidate "${edgescale_candidate}" ABSOLUTE)
        set(EDGESCALE_INCLUDE_DIR "${edgescale_candidate}" CACHE INTERNAL "Folder of edgescale/es_quantize.h")
        break()
    endif()
endforeach()

include("${CMAKE_CURRENT_LIST_DIR}/edgescale-add-model.cmake")
set(edgescale_FOUND TRUE)

"""LLVM IR and machine code for CPUs."""

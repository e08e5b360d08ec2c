"""The rows of `bench kernels`: how a case is measured, and the cases of a CPU and of a GPU."""

"""The parts of `benchmarks.gpu`: each a module with `run(report, options)`, in a process of its own."""

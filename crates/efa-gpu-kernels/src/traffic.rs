//! Kernels that post what they are told and write down what completes.

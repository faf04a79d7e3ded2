//! Does this kernel's offload really work? Bytes are sent through each one and compared.

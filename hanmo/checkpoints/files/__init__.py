"""Files of tensors: written as a stream, continued, verified."""

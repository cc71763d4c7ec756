"""The training stream: order of samples, windows, the actor that deals them, batches of a rank."""

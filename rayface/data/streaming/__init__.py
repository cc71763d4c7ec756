"""Training stream: sample order, windows, the actor that distributes them, batches of a rank."""

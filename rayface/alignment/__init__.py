"""Find and align the faces of photographs: `rayface align`."""

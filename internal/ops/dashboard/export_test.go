package dashboard

// Harmless is harmless.
func Harmless(cell string) string { return harmless(cell) }

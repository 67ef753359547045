package unit

// Text is what is said of a standing, by a process of which nothing else is known.
func Text(s *Standing) string { return New(Config{}).textLocked(s) }

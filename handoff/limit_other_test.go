//go:build !unix

package handoff_test

// roleVariable is for systems on which descriptors can be passed.
const roleVariable = "CROSSFADE_HANDOFF_TEST_ROLE"

func play(string) int { return 2 }

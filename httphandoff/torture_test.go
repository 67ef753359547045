//go:build unix

package httphandoff_test

func runService() {}

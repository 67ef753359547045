package main

// Main is the program, for the test binary that runs as it.
var Main = main

package main

// Main is the service, for test processes.
var Main = main

package tableflip

// NewUpgrader is New without its limit of one to a process.
var NewUpgrader = newUpgrader

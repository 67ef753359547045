package statefile

// CreateTemporary is Create where there are no memfds.
var CreateTemporary = createTemporary

//go:build linux

package rendezvous

// Parsers of /proc.
var (
	FindHolder = findHolder
	ParseUmask = parseUmask
)

// The steps between which others can act who may write to the directory.
var (
	MakeTemp        = makeTemp
	OpenTemp        = openTemp
	BindTemp        = bindTemp
	SetSocketRights = setSocketRights
)

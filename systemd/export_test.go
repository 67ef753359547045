package systemd

// What the fuzz targets look at from inside.
var (
	EscapeName   = escapeName
	UnescapeName = unescapeName
	ParseNames   = parseNames
	ParseCgroup  = parseCgroup
	Compose      = compose
)

const MaxMessage = maxMessage

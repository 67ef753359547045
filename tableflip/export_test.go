package tableflip

// NewUpgrader is New without its limit of one to a process.
var NewUpgrader = newUpgrader

// How descriptors are named in the registry.
var (
	Kinds  = []string{kindListener, kindPacket, kindConn, kindFile}
	NameOf = nameOf
	IsFile = isFile
)

const KindFile = kindFile

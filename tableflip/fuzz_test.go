package tableflip_test

import (
	"testing"

	"github.com/crossfade-go/crossfade/handoff"
	"github.com/crossfade-go/crossfade/tableflip"
)

// FuzzNames: whatever a program calls a descriptor, its name in the registry is one
// that can be handed over, and two descriptors never share one.
func FuzzNames(f *testing.F) {
	f.Add("tcp", ":80", "tcp", ":81")
	f.Add("unix", "/a\nb", "unix", "/a b")
	f.Add("a:b", "c", "a", "b:c")
	f.Add("\"", " ", "", "\" \"")
	f.Fuzz(func(t *testing.T, network, addr, otherNetwork, otherAddr string) {
		for _, kind := range tableflip.Kinds {
			if kind == tableflip.KindFile {
				addr, otherAddr = "", ""
			}
			name, other := tableflip.NameOf(kind, network, addr), tableflip.NameOf(kind, otherNetwork, otherAddr)
			if err := handoff.CheckName(name); err != nil {
				t.Errorf("%q %q: %v", network, addr, err)
			}
			if same := network == otherNetwork && addr == otherAddr; same != (name == other) {
				t.Errorf("%q %q and %q %q are both %q", network, addr, otherNetwork, otherAddr, name)
			}
			if tableflip.IsFile(name) != (kind == tableflip.KindFile) {
				t.Errorf("%q is a file's: %t", name, tableflip.IsFile(name))
			}
		}
	})
}

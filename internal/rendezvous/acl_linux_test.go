package rendezvous_test

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// allow lets a user write to a directory by an access list, as setfacl(1) does. Its
// form is in linux/posix_acl_xattr.h.
func allow(t *testing.T, dir string, uid uint32) {
	t.Helper()
	list := binary.LittleEndian.AppendUint32(nil, 2)
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, 7, ^uint32(0)}, {0x02, 7, uid}, {0x04, 5, ^uint32(0)}, {0x10, 7, ^uint32(0)}, {0x20, 5, ^uint32(0)}} {
		list = binary.LittleEndian.AppendUint16(list, e.tag)
		list = binary.LittleEndian.AppendUint16(list, e.perm)
		list = binary.LittleEndian.AppendUint32(list, e.id)
	}
	if err := unix.Setxattr(dir, "system.posix_acl_access", list, 0); err != nil {
		t.Skipf("no access lists on this file system: %v", err)
	}
}

// SPDX-License-Identifier: Apache-2.0

package record

// Unset is the login user or session of a process that has none.
const Unset = ^uint32(0)

// Credentials are a process's identity to the kernel; numbers of the initial user namespace.
type Credentials struct {
	// UID and GID are the effective ones.
	UID, GID           uint32
	RealUID, RealGID   uint32
	SavedUID, SavedGID uint32
	FSUID, FSGID       uint32
	// Permitted and Effective are sets of capabilities, 1 << unix.CAP_…, as they hold in the
	// process's own user namespace.
	Permitted, Effective uint64
	// LoginUID and SessionID are those of audit(7), or Unset.
	LoginUID, SessionID uint32
	NoNewPrivs          bool
	// Seccomp is 0 off, 1 strict, 2 filter.
	Seccomp    uint32
	Namespaces Namespaces
	Groups     Groups
}

// Groups are the supplementary groups of a process. Values can be compared, also those of which
// not all is known; the zero Groups is unknown.
type Groups struct {
	known bool
	count uint32
	gids  [MaxGroups]uint32
}

// GroupsOf holds a list that was read elsewhere.
func GroupsOf(gids []uint32) Groups {
	g := Groups{known: len(gids) <= MaxGroups, count: uint32(len(gids))}
	copy(g.gids[:], gids)
	return g
}

// List returns the group IDs in ascending order; known is false when there are more than the
// record holds (MaxGroups), or the kernel could not tell.
func (g *Groups) List() (gids []uint32, known bool) {
	if !g.known {
		return nil, false
	}
	return g.gids[:g.count], true
}

func (g *Groups) decode(r *reader) {
	g.count = r.u32()
	g.known = g.count <= MaxGroups
	list := *r
	*r = list[4*MaxGroups:]
	for i := range min(g.count, MaxGroups) {
		g.gids[i] = list.u32()
	}
}

// Namespace is one namespace of a process.
type Namespace struct {
	Inode uint32 // of nsfs, as in /proc/PID/ns
	Host  bool   // it is the initial one; means something only if Namespaces.Known
}

// Namespaces are those that a process is in.
type Namespaces struct {
	User, PID, Mount, Network, Cgroup, IPC, UTS Namespace
	// Known says that the sensor read all of them and knows all of the host's.
	Known bool
}

// MarkHost tells which namespaces are the host's. A number is one namespace as long as
// that lives, and the initial ones live for ever.
func (n *Namespaces) MarkHost(host NamespaceNumbers) {
	n.Known = true
	for _, c := range []struct {
		have *Namespace
		host uint32
	}{
		{&n.User, host.User}, {&n.PID, host.PID}, {&n.Mount, host.Mount}, {&n.Network, host.Network},
		{&n.Cgroup, host.Cgroup}, {&n.IPC, host.IPC}, {&n.UTS, host.UTS},
	} {
		n.Known = n.Known && c.host != 0 && c.have.Inode != 0
		c.have.Host = c.have.Inode == c.host
	}
}

func (c *Credentials) decode(r *reader) {
	c.Permitted, c.Effective = r.u64(), r.u64()
	c.UID, c.GID, c.RealUID, c.RealGID = r.u32(), r.u32(), r.u32(), r.u32()
	c.SavedUID, c.SavedGID, c.FSUID, c.FSGID = r.u32(), r.u32(), r.u32(), r.u32()
	c.LoginUID, c.SessionID = r.u32(), r.u32()
	c.NoNewPrivs, c.Seccomp = r.u32() != 0, r.u32()
	n := decodeNamespaces(r)
	c.Namespaces = Namespaces{
		User: Namespace{Inode: n.User}, PID: Namespace{Inode: n.PID}, Mount: Namespace{Inode: n.Mount},
		Network: Namespace{Inode: n.Network}, Cgroup: Namespace{Inode: n.Cgroup}, IPC: Namespace{Inode: n.IPC}, UTS: Namespace{Inode: n.UTS},
	}
	c.Groups.decode(r)
	r.u32()
}

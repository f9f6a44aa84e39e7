package graft

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Role is what a peer does in its group. The numbers are the fourth part of a
// PeerID on the wire: braft knows 0 and 1, and 2 is graft's own.
type Role uint8

// The roles of a peer.
const (
	Voter   Role = 0 // stores the log, votes, may lead
	Witness Role = 1 // votes, stores the log without payloads (braft's witness)
	Learner Role = 2 // stores and applies the log, counts in no quorum
)

// String returns the role's name.
func (r Role) String() string {
	switch r {
	case Voter:
		return "voter"
	case Witness:
		return "witness"
	case Learner:
		return "learner"
	}
	return "Role(" + strconv.Itoa(int(r)) + ")"
}

// PeerID names one replica: the address of its process, an index that tells
// apart several replicas of one group in one process, and its role.
//
// The role is not part of a peer's identity: two PeerIDs that differ in their
// role only are the same peer. Compare with Same, or by ID. The zero value names
// nobody. It corresponds to braft's PeerId.
type PeerID struct {
	Address string // "host:port"; an IPv6 host stands in brackets
	Index   int    // 0 unless one process holds several replicas of the group
	Role    Role
}

// ParsePeerID reads "host:port[:index[:role]]", where host is an IPv4 address, an
// IPv6 address in brackets or a host name.
func ParsePeerID(s string) (PeerID, error) {
	fail := func(what string) (PeerID, error) {
		return PeerID{}, fmt.Errorf("graft: peer %q: %s; want host:port[:index[:role]]", s, what)
	}
	if len(s) > maxPeerIDLen {
		return PeerID{}, fmt.Errorf("graft: peer id of %d bytes is longer than %d", len(s), maxPeerIDLen)
	}
	var host, rest string
	if strings.HasPrefix(s, "[") {
		end := strings.Index(s, "]")
		if end < 0 {
			return fail("no closing bracket")
		}
		ip, err := netip.ParseAddr(s[1:end])
		if err != nil || !ip.Is6() {
			return fail("not an IPv6 address in the brackets")
		}
		host, rest = "["+ip.String()+"]", s[end+1:]
		if !strings.HasPrefix(rest, ":") {
			return fail("no port")
		}
		rest = rest[1:]
	} else {
		var ok bool
		if host, rest, ok = strings.Cut(s, ":"); !ok {
			return fail("no port")
		}
		if err := checkHost(host); err != nil {
			return fail(err.Error())
		}
	}
	parts := strings.Split(rest, ":")
	if len(parts) > 3 {
		return fail("too many parts")
	}
	var nums [3]int
	for i, limit := range []int{65535, 1<<31 - 1, int(Learner)} {
		if i >= len(parts) {
			break
		}
		n, err := parseDigits(parts[i], limit)
		if err != nil {
			return fail([]string{"port", "index", "role"}[i] + " " + err.Error())
		}
		nums[i] = n
	}
	if nums[0] == 0 {
		return fail("port is 0")
	}
	return PeerID{Address: host + ":" + strconv.Itoa(nums[0]), Index: nums[1], Role: Role(nums[2])}, nil
}

// maxPeerIDLen bounds what a peer may send as a name: 253 bytes of host name and the numbers.
const maxPeerIDLen = 300

func checkHost(host string) error {
	if host == "" {
		return errors.New("no host")
	}
	if len(host) > 253 {
		return errors.New("host name is longer than 253 bytes")
	}
	letters := false
	for _, c := range []byte(host) {
		switch {
		case c >= '0' && c <= '9', c == '.':
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '-', c == '_':
			letters = true
		default:
			return fmt.Errorf("host has the character %q", c)
		}
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.IsUnspecified() {
			return errors.New("0.0.0.0 is no address that peers can reach")
		}
	} else if !letters {
		return errors.New("host is neither an IPv4 address nor a name")
	}
	return nil
}

func parseDigits(s string, limit int) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil || strings.HasPrefix(s, "+") {
		return 0, fmt.Errorf("%q is not a number", s)
	}
	if int(n) > limit {
		return 0, fmt.Errorf("%d is larger than %d", n, limit)
	}
	return int(n), nil
}

// MustParsePeerID is ParsePeerID for constants; it panics if s is not valid.
func MustParsePeerID(s string) PeerID {
	p, err := ParsePeerID(s)
	if err != nil {
		panic(err)
	}
	return p
}

// String returns the peer as braft writes it, "host:port:index:role". The zero
// value is braft's empty peer, "0.0.0.0:0:0:0".
func (p PeerID) String() string {
	address := p.Address
	if address == "" {
		address = "0.0.0.0:0"
	}
	return address + ":" + strconv.Itoa(p.Index) + ":" + strconv.Itoa(int(p.Role))
}

// IsZero reports whether p names nobody.
func (p PeerID) IsZero() bool { return p.Address == "" && p.Index == 0 }

// ID returns p without its role, for use as a map key.
func (p PeerID) ID() PeerID { p.Role = Voter; return p }

// Same reports whether p and o are the same peer, whatever their roles.
func (p PeerID) Same(o PeerID) bool { return p.ID() == o.ID() }

// MarshalText writes the form that ParsePeerID reads.
func (p PeerID) MarshalText() ([]byte, error) {
	if p.IsZero() {
		return nil, nil
	}
	return []byte(p.String()), nil
}

// UnmarshalText reads what MarshalText wrote; an empty text is the zero value.
func (p *PeerID) UnmarshalText(b []byte) (err error) {
	*p = PeerID{}
	if len(b) > 0 {
		*p, err = ParsePeerID(string(b))
	}
	return err
}

// comparePeers orders peers: addresses with an IP first, as braft does, by the number, then those with a name, by its letters; then by port and
// index. It is 0 for the same peer only. The order of a configuration's peers is part of a group's identity (groupIDOf), so it
// must not depend on how they were given, and stays as it is.
func comparePeers(a, b PeerID) int {
	if a.Address != b.Address {
		if c := compareAddresses(a.Address, b.Address); c != 0 {
			return c
		}
	}
	return cmp.Compare(a.Index, b.Index)
}

func compareAddresses(a, b string) int {
	ha, pa := splitAddress(a)
	hb, pb := splitAddress(b)
	ia, erra := netip.ParseAddr(strings.Trim(ha, "[]"))
	ib, errb := netip.ParseAddr(strings.Trim(hb, "[]"))
	c := 0
	switch {
	case erra == nil && errb == nil:
		c = ia.Compare(ib)
	case erra == nil: // compared by letters with some names, and by number among themselves, they would have no order at all
		return -1
	case errb == nil:
		return 1
	default:
		c = strings.Compare(ha, hb)
	}
	// Two ways to write one address, which only a PeerID that was not parsed may have, are two addresses.
	return cmp.Or(c, cmp.Compare(pa, pb), strings.Compare(a, b))
}

func splitAddress(address string) (host string, port int) {
	i := strings.LastIndexByte(address, ':')
	if i < 0 {
		return address, 0
	}
	port, _ = strconv.Atoi(address[i+1:])
	return address[:i], port
}

// Configuration is the set of a group's peers, with their roles. It is
// immutable: sorted, one entry per peer, never changed after it was made. The
// zero value is empty.
type Configuration struct{ peers []PeerID }

// NewConfiguration returns the configuration of the given peers, in any order. It
// refuses a peer that occurs twice (also with two roles) and the zero PeerID.
func NewConfiguration(peers ...PeerID) (Configuration, error) {
	ps := slices.Clone(peers)
	slices.SortFunc(ps, comparePeers)
	for i, p := range ps {
		if p.IsZero() {
			return Configuration{}, errors.New("graft: configuration has an empty peer")
		}
		if i > 0 && p.Same(ps[i-1]) {
			return Configuration{}, fmt.Errorf("graft: configuration names peer %v twice", p)
		}
	}
	if len(ps) > maxPeers {
		return Configuration{}, fmt.Errorf("graft: configuration has %d peers, at most %d are allowed", len(ps), maxPeers)
	}
	return Configuration{peers: ps}, nil
}

// maxPeers bounds a configuration, so that one that came over the network cannot
// exhaust memory and counting majorities stays cheap.
const maxPeers = 128

// ParseConfiguration reads peers separated by commas; spaces around them are
// ignored. The empty string is the empty configuration.
func ParseConfiguration(s string) (Configuration, error) {
	if strings.TrimSpace(s) == "" {
		return Configuration{}, nil
	}
	var peers []PeerID
	for part := range strings.SplitSeq(s, ",") {
		p, err := ParsePeerID(strings.TrimSpace(part))
		if err != nil {
			return Configuration{}, err
		}
		peers = append(peers, p)
	}
	return NewConfiguration(peers...)
}

// MustParseConfiguration is ParseConfiguration for constants; it panics if s is
// not valid.
func MustParseConfiguration(s string) Configuration {
	c, err := ParseConfiguration(s)
	if err != nil {
		panic(err)
	}
	return c
}

// configurationOf parses the peers of a configuration entry.
func configurationOf(peers []string) (Configuration, error) {
	ps := make([]PeerID, 0, len(peers))
	for _, s := range peers {
		p, err := ParsePeerID(s)
		if err != nil {
			return Configuration{}, err
		}
		ps = append(ps, p)
	}
	return NewConfiguration(ps...)
}

// Empty reports whether c has no peers.
func (c Configuration) Empty() bool { return len(c.peers) == 0 }

// Len is the number of peers, learners included.
func (c Configuration) Len() int { return len(c.peers) }

// Peers returns a copy of all peers in order.
func (c Configuration) Peers() []PeerID { return slices.Clone(c.peers) }

// Voters returns the peers that count in quorums, in order.
func (c Configuration) Voters() []PeerID {
	return c.filter(func(p PeerID) bool { return p.Role != Learner })
}

// Learners returns the peers that count in no quorum, in order.
func (c Configuration) Learners() []PeerID {
	return c.filter(func(p PeerID) bool { return p.Role == Learner })
}

func (c Configuration) hasLearners() bool {
	return slices.ContainsFunc(c.peers, func(p PeerID) bool { return p.Role == Learner })
}

func (c Configuration) filter(keep func(PeerID) bool) (ps []PeerID) {
	for _, p := range c.peers {
		if keep(p) {
			ps = append(ps, p)
		}
	}
	return ps
}

// Find returns the peer with p's identity as c has it, that is with its role.
func (c Configuration) Find(p PeerID) (PeerID, bool) {
	i, ok := slices.BinarySearchFunc(c.peers, p, comparePeers)
	if !ok {
		return PeerID{}, false
	}
	return c.peers[i], true
}

// Contains reports whether the peer is in c, in any role.
func (c Configuration) Contains(p PeerID) bool { _, ok := c.Find(p); return ok }

// ContainsVoter reports whether the peer is in c and counts in its quorums.
func (c Configuration) ContainsVoter(p PeerID) bool {
	q, ok := c.Find(p)
	return ok && q.Role != Learner
}

// minus returns the peers of c that o does not have, in order.
func (c Configuration) minus(o Configuration) []PeerID {
	return c.filter(func(p PeerID) bool { return !o.Contains(p) })
}

// votersDiffering counts the peers that count in quorums of one of both only.
func (c Configuration) votersDiffering(o Configuration) int {
	only := func(a, b Configuration) int {
		return len(a.filter(func(p PeerID) bool { return p.Role != Learner && !b.ContainsVoter(p) }))
	}
	return only(c, o) + only(o, c)
}

// with returns c with the peer in it, in the role that peer has.
func (c Configuration) with(p PeerID) (Configuration, error) {
	return NewConfiguration(append(c.without(p), p)...)
}

// without returns the peers of c but for one.
func (c Configuration) without(p PeerID) []PeerID {
	return c.filter(func(q PeerID) bool { return !q.Same(p) })
}

// Equal reports whether both have the same peers in the same roles.
func (c Configuration) Equal(o Configuration) bool { return slices.Equal(c.peers, o.peers) }

// String returns the peers in ParseConfiguration's form.
func (c Configuration) String() string {
	return strings.Join(c.strings(), ",")
}

func (c Configuration) strings() []string {
	ss := make([]string, len(c.peers))
	for i, p := range c.peers {
		ss[i] = p.String()
	}
	return ss
}

// MarshalText writes the form that ParseConfiguration reads.
func (c Configuration) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (c *Configuration) UnmarshalText(b []byte) (err error) {
	*c, err = ParseConfiguration(string(b))
	return err
}

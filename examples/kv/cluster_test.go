package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestGoRedisClusterClient(t *testing.T) {
	g := newTestGroup(t, 3, 3)
	g.waitLeader()
	c, ctx := g.clusterClient(20), context.Background()

	require.NoError(t, c.Set(ctx, "a", "1", 0).Err())
	assert.Equal(t, "1", c.Get(ctx, "a").Val())
	assert.EqualValues(t, 2, c.Incr(ctx, "a").Val())
	assert.EqualValues(t, 12, c.IncrBy(ctx, "a", 10).Val())
	assert.EqualValues(t, 4, c.Append(ctx, "a", "xy").Val())
	assert.EqualValues(t, 4, c.StrLen(ctx, "a").Val())
	assert.ErrorContains(t, c.Incr(ctx, "a").Err(), "ERR value is not an integer or out of range")
	assert.ErrorIs(t, c.Get(ctx, "nothing").Err(), redis.Nil)
	assert.False(t, c.SetNX(ctx, "a", "2", 0).Val())
	assert.True(t, c.SetXX(ctx, "a", "2", 0).Val())
	assert.EqualValues(t, 1, c.Do(ctx, "CAS", "a", "2", "3").Val())
	assert.EqualValues(t, 0, c.Do(ctx, "CAS", "a", "2", "4").Val())
	assert.Equal(t, "3", c.Get(ctx, "a").Val())

	pipe := c.Pipeline()
	for i := range 1000 {
		pipe.Set(ctx, fmt.Sprintf("key-%d", i), i, 0)
	}
	_, err := pipe.Exec(ctx)
	require.NoError(t, err)
	assert.EqualValues(t, 1001, c.DBSize(ctx).Val())
	seen := make(map[string]bool)
	require.NoError(t, c.ForEachMaster(ctx, func(ctx context.Context, m *redis.Client) error {
		for it := m.Scan(ctx, 0, "key-*", 100).Iterator(); it.Next(ctx); {
			seen[it.Val()] = true
		}
		return nil
	}))
	assert.Len(t, seen, 1000)
	assert.EqualValues(t, 2, c.Exists(ctx, "a", "b", "a").Val())
	assert.EqualValues(t, 1, c.Del(ctx, "a", "b").Val())
	require.NoError(t, c.FlushAll(ctx).Err())
	assert.EqualValues(t, 0, c.DBSize(ctx).Val())
}

// Each line is a command for the leader and its answer.
func TestCommands(t *testing.T) {
	g := newTestGroup(t, 1, 1)
	c := dialRaw(t, g.cfgs[g.waitLeader()].redis)
	for _, test := range [][2]string{
		{"ping", "+PONG"}, {"PING hi", "$hi"}, {"echo hi", "$hi"}, {"echo", "-ERR wrong number of arguments for 'echo' command"},
		{"nope a b", "-ERR unknown command 'nope', with args beginning with: 'a' 'b' "},
		{"set a 1", "+OK"}, {"get a", "$1"}, {"set a 2 nx", "$null"}, {"set b 2 nx", "+OK"}, {"set c 2 xx", "$null"},
		{"set a 3 xx get", "$1"}, {"set c 1 get", "$null"}, {"set c 2 nx get", "$1"}, {"get c", "$1"},
		{"set a 1 nx xx", "-ERR syntax error"}, {"set a 1 ex 10", "-ERR syntax error: keys do not expire here, EX is not supported"},
		{"set a 1 foo", "-ERR syntax error"},
		{"incr n", ":1"}, {"incrby n 41", ":42"}, {"decr n", ":41"}, {"decrby n 1", ":40"}, {"incrby n x", "-ERR value is not an integer or out of range"},
		{"incrby n 9223372036854775807", "-ERR increment or decrement would overflow"},
		{"decrby n -9223372036854775808", "-ERR decrement would overflow"},
		{"append n ab", ":4"}, {"strlen n", ":4"}, {"strlen none", ":0"}, {"incr n", "-ERR value is not an integer or out of range"},
		{"mset x 1 y 2", "+OK"}, {"mset x", "-ERR wrong number of arguments for 'mset' command"},
		{"mset x 1 y", "-ERR wrong number of arguments for 'mset' command"},
		{"mget x none y", "*[$1,$null,$2]"}, {"exists x y x none", ":3"}, {"del x none x", ":1"}, {"dbsize", ":5"},
		{"cas y 2 3", ":1"}, {"cas y 2 4", ":0"}, {"cas none 1 2", ":0"}, {"get y", "$3"},
		{"scan 0 count 1000 match y", "*[$0,*[$y]]"}, {"scan 0 count 1000 type list", "*[$0,*[]]"}, {"scan x", "-ERR invalid cursor"},
		{"scan 0 count 0", "-ERR syntax error"}, {"scan 0 match", "-ERR syntax error"},
		{"select 0", "+OK"}, {"select 1", "-ERR SELECT is not allowed in cluster mode"}, {"client setname me", "+OK"}, {"client getname", "$me"},
		{"client setinfo lib-name x", "+OK"}, {"config get save", "*[$save,$]"}, {"config get append*", "*[$appendonly,$yes,$appendfsync,$always]"},
		{"cluster keyslot a", ":15495"}, {"command count", ":" + strconv.Itoa(len(commandList))},
		{"command info get nope", "*[*[$get,:2,*[+readonly],:1,:1,:1,*[],*[],*[],*[]],$null]"},
		{"hello 4", "-NOPROTO unsupported protocol version"}, {"readonly", "+OK"}, {"readwrite", "+OK"}, {"asking", "+OK"},
		{"graft announce 127.0.0.1:1 127.0.0.1:2", "-ERR 127.0.0.1:1:0:0 is not a member of the group"},
		{"flushall", "+OK"}, {"dbsize", ":0"}, {"get y", "$null"},
		{"hello 3", "%[$server,$redis,$version,$7.0.0,$proto,:3,$id,:1,$mode,$cluster,$role,$master,$modules,*[]]"},
		{"get y", "_"}, {"mget y", "*[_]"}, {"config get save", "%[$save,$]"}, {"reset", "+RESET"}, {"get y", "$null"},
		{"quit", "+OK"},
	} {
		if got := c.do(test[0]); got != test[1] {
			t.Errorf("%s: %s, want %s", test[0], got, test[1])
		}
	}
	_, err := c.rd.ReadByte()
	assert.Error(t, err, "after QUIT the connection is closed")
}

func TestValuesAndRequestsAreBounded(t *testing.T) {
	g := newTestGroup(t, 1, 1)
	addr := g.cfgs[g.waitLeader()].redis
	c := dialRaw(t, addr)
	big := strings.Repeat("x", maxValue)
	assert.Equal(t, "+OK", c.do("set big "+big))
	assert.Equal(t, ":16777216", c.do("strlen big"))
	assert.Equal(t, "-"+replyTooLong.text, c.do("append big x"))
	assert.Equal(t, "-"+replyTooLong.text, c.do("set big "+big+"x"))
	assert.Equal(t, "$"+big, c.do("get big"))
	assert.Equal(t, "-"+replyTooMuch.text, c.do("mget"+strings.Repeat(" big", 1000)))
	assert.Equal(t, "*["+strings.TrimSuffix(strings.Repeat("$"+big+",", 4), ",")+"]", c.do("mget"+strings.Repeat(" big", 4)))
	assert.Equal(t, "-"+replyPattern.text, c.do("scan 0 match *["+strings.Repeat("b", maxPattern)))
	assert.Equal(t, "-"+replyKeyLong.text, c.do("get "+strings.Repeat("k", maxKey+1)))
	_, err := c.conn.Write([]byte("*3\r\n$3\r\nset\r\n$3\r\nbig\r\n$2147483648\r\n"))
	require.NoError(t, err)
	assert.Equal(t, "-ERR Protocol error: invalid bulk length", c.recv())
	_, err = c.rd.ReadByte()
	assert.Error(t, err, "after a protocol error the connection is closed")
}

// A connection's own order holds, however many commands of both kinds are under way.
func TestPipelinedCommandsKeepTheirOrder(t *testing.T) {
	g := newTestGroup(t, 3, 3)
	c := dialRaw(t, g.cfgs[g.waitLeader()].redis)
	rng := rand.New(rand.NewPCG(1, 2))
	model := make(map[string]int)
	var commands, want []string
	for range 6000 {
		key := "k" + strconv.Itoa(rng.IntN(5))
		switch rng.IntN(20) {
		case 0:
			commands, want = append(commands, "ping"), append(want, "+PONG")
		case 1, 2:
			commands = append(commands, "get "+key)
			if n, ok := model[key]; ok {
				want = append(want, "$"+strconv.Itoa(n))
			} else {
				want = append(want, "$null")
			}
		case 3:
			commands, want = append(commands, "nope"), append(want, "-ERR unknown command 'nope', with args beginning with: ")
		default:
			model[key]++
			commands, want = append(commands, "incr "+key), append(want, ":"+strconv.Itoa(model[key]))
		}
	}
	go c.send(commands...)
	for i := range want {
		require.Equal(t, want[i], c.recv(), "command %d, %s", i, commands[i])
	}
}

func TestFollowersRedirectOrReadThemselves(t *testing.T) {
	g := newTestGroup(t, 3, 3)
	leader := g.waitLeader()
	follower := (leader + 1) % 3
	l, f := dialRaw(t, g.cfgs[leader].redis), dialRaw(t, g.cfgs[follower].redis)
	moved := "-MOVED 15495 " + g.cfgs[leader].redis
	assert.Equal(t, moved, f.do("set a 1"))
	assert.Equal(t, moved, f.do("get a"))
	assert.Equal(t, "-MOVED 0 "+g.cfgs[leader].redis, f.do("dbsize"))
	assert.Equal(t, "+OK", f.do("readonly"))
	assert.Equal(t, moved, f.do("set a 1"))
	for i := range 200 { // what the leader has acknowledged, the follower's next read sees
		n := ":" + strconv.Itoa(i+1)
		require.Equal(t, n, l.retry("incr a"))
		require.Equal(t, "$"+n[1:], f.retry("get a"))
	}
	assert.Equal(t, "+OK", f.do("readwrite"))
	assert.Equal(t, moved, f.do("get a"))

	assert.Contains(t, l.do("role"), "*[$master,")
	assert.Contains(t, f.do("role"), "*[$slave,$127.0.0.1,:"+strconv.Itoa(portOf(g.cfgs[leader].redis))+",$connected,")
	slots := f.do("cluster slots")
	assert.True(t, strings.HasPrefix(slots, "*[*[:0,:16383,*[$127.0.0.1,:"+strconv.Itoa(portOf(g.cfgs[leader].redis))), slots)
	for _, cfg := range g.cfgs {
		assert.Contains(t, slots, ":"+strconv.Itoa(portOf(cfg.redis))+",")
		assert.Contains(t, f.do("cluster nodes"), cfg.redis+"@"+strconv.Itoa(portOf(cfg.raft)))
	}
	assert.Contains(t, f.do("cluster info"), "cluster_state:ok")
}

func TestWithoutALeaderTheClusterIsDown(t *testing.T) {
	g := newTestGroup(t, 3, 1)
	c := dialRaw(t, g.cfgs[0].redis)
	for _, cmd := range []string{"set a 1", "get a"} {
		assert.True(t, strings.HasPrefix(c.do(cmd), "-CLUSTERDOWN "), cmd)
	}
	assert.Equal(t, "+OK", c.do("readonly"))
	assert.True(t, strings.HasPrefix(c.do("get a"), "-CLUSTERDOWN "))
	assert.Contains(t, c.do("cluster info"), "cluster_state:fail")
	assert.Equal(t, "*[]", c.do("cluster slots"))
	assert.Equal(t, "+PONG", c.do("ping"))
}

func TestReplicasAgreeAfterTheLeaderWasStopped(t *testing.T) {
	g := newTestGroup(t, 3, 3)
	c, ctx := g.clusterClient(20), context.Background()
	old := g.waitLeader()
	for i := range 300 {
		require.NoError(t, c.Set(ctx, fmt.Sprintf("k%d", i%50), i, 0).Err())
	}
	g.stop(old)
	g.waitLeader()
	c.ReloadState(ctx) // of itself go-redis looks every ten seconds only, when the master does not answer
	waitFor(t, "the client finds the new leader", func() bool { return c.Get(ctx, "k0").Err() == nil })
	for i := range 300 {
		require.NoError(t, c.Incr(ctx, fmt.Sprintf("k%d", i%50)).Err())
	}
	g.start(old)
	leader := g.waitLeader()
	require.Equal(t, "256", c.Get(ctx, "k0").Val())
	waitFor(t, "all replicas at one index", func() bool {
		want, _, _ := g.replicas[leader].machine.digest()
		return !slices.ContainsFunc(g.replicas, func(r *replica) bool { i, _, _ := r.machine.digest(); return i != want })
	})
	_, digest, size := g.replicas[leader].machine.digest()
	assert.Equal(t, 50, size)
	for i, r := range g.replicas {
		_, other, _ := r.machine.digest()
		assert.Equal(t, digest, other, "replica %d", i)
	}
}

func TestCloseHangsUpOnBusyClients(t *testing.T) {
	g := newTestGroup(t, 3, 3)
	leader := g.waitLeader()
	done := make(chan struct{})
	conn, err := net.Dial("tcp", g.cfgs[leader].redis)
	require.NoError(t, err)
	busy := make(chan struct{})
	go func() { // sends, and never reads an answer
		defer close(done)
		defer conn.Close()
		cmd := appendTexts(nil, "SET", "a", strings.Repeat("x", 1000))
		for n := range 100_000 {
			if n == 200 {
				close(busy)
			}
			if _, err := conn.Write(append(cmd, appendTexts(nil, "GET", "a")...)); err != nil {
				return
			}
		}
	}()
	<-busy
	g.stop(leader)
	<-done
}

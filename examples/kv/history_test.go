package main

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// storeOp is one operation on one key, as a client saw it.
type storeOp struct {
	kind  string // get, set, append, cas
	key   string
	value string // that is written
	old   string // of cas
}

// storeResult is what a client got. Of an unknown outcome nothing is known but that the operation may take effect at any
// later time, or never.
type storeResult struct {
	unknown bool
	value   string // of get; "" if there is no such key
	n       int64  // of append and cas
}

// storeModel is what one key must behave like. Every value written is unique and not empty, so "" can stand for no key.
var storeModel = porcupine.Model{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		byKey := make(map[string][]porcupine.Operation)
		for _, op := range history {
			key := op.Input.(storeOp).key
			byKey[key] = append(byKey[key], op)
		}
		parts := make([][]porcupine.Operation, 0, len(byKey))
		for _, part := range byKey {
			parts = append(parts, part)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, input, output any) (bool, any) {
		now, op, res := state.(string), input.(storeOp), output.(storeResult)
		switch op.kind {
		case "get":
			return res.value == now, now
		case "set":
			return true, op.value
		case "append":
			return res.unknown || res.n == int64(len(now)+len(op.value)), now + op.value
		case "cas":
			if now == op.old && now != "" {
				return res.unknown || res.n == 1, op.value
			}
			return res.unknown || res.n == 0, now
		}
		panic("kv: unknown kind of operation")
	},
	Equal: func(a, b any) bool { return a.(string) == b.(string) },
	DescribeOperation: func(input, output any) string {
		op, res := input.(storeOp), output.(storeResult)
		return fmt.Sprintf("%s %s %q %q → %+v", op.kind, op.key, op.old, op.value, res)
	},
}

// history records what concurrent clients did.
//
// Ownership: mu guards ops.
type history struct {
	start time.Time
	mu    sync.Mutex
	ops   []porcupine.Operation
}

func (h *history) now() int64 { return int64(time.Since(h.start)) }

// add records an operation that was called at call and has an outcome now. An unknown write has no end; an unknown
// read says nothing.
func (h *history) add(client int, op storeOp, call int64, res storeResult) {
	end := h.now()
	if res.unknown {
		if op.kind == "get" {
			return
		}
		end = int64(1) << 62
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: op, Call: call, Output: res, Return: end})
}

// counts returns how many operations succeeded, and how many have an unknown outcome.
func (h *history) counts() (known, unknown int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, op := range h.ops {
		if op.Output.(storeResult).unknown {
			unknown++
		} else {
			known++
		}
	}
	return known, unknown
}

// check reports a history that no single copy of the store could have produced.
func (h *history) check(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, part := range storeModel.Partition(h.ops) {
		key := part[0].Input.(storeOp).key
		switch result := porcupine.CheckOperationsTimeout(storeModel, part, 5*time.Minute); result {
		case porcupine.Ok:
		case porcupine.Unknown:
			t.Errorf("key %s: the checker did not finish with %d operations", key, len(part))
		default:
			t.Errorf("key %s: %d operations are not linearizable", key, len(part))
			describeHistory(t, part)
		}
	}
}

// describeHistory logs the operations that are not linearizable, if they are few enough to be read.
func describeHistory(t *testing.T, part []porcupine.Operation) {
	for i, op := range part {
		if i == 500 {
			t.Log("…")
			return
		}
		t.Logf("client %d, %d to %d: %s", op.ClientId, op.Call, op.Return, storeModel.DescribeOperation(op.Input, op.Output))
	}
}

// The checker must see what it is there for.
func TestTheModelTellsGoodHistoriesFromBad(t *testing.T) {
	set := func(v string, call, end int64) porcupine.Operation {
		return porcupine.Operation{Input: storeOp{kind: "set", key: "k", value: v}, Output: storeResult{}, Call: call, Return: end}
	}
	lost := func(v string, call int64) porcupine.Operation {
		return porcupine.Operation{Input: storeOp{kind: "set", key: "k", value: v}, Output: storeResult{unknown: true}, Call: call, Return: 1 << 62}
	}
	get := func(v string, call, end int64) porcupine.Operation {
		return porcupine.Operation{Input: storeOp{kind: "get", key: "k"}, Output: storeResult{value: v}, Call: call, Return: end}
	}
	cas := func(old, v string, n, call, end int64) porcupine.Operation {
		return porcupine.Operation{Input: storeOp{kind: "cas", key: "k", old: old, value: v}, Output: storeResult{n: n}, Call: call, Return: end}
	}
	add := func(v string, n, call, end int64) porcupine.Operation {
		return porcupine.Operation{Input: storeOp{kind: "append", key: "k", value: v}, Output: storeResult{n: n}, Call: call, Return: end}
	}
	for _, test := range []struct {
		name string
		ops  []porcupine.Operation
		want bool
	}{
		{"read after write", []porcupine.Operation{set("a", 0, 1), get("a", 2, 3)}, true},
		{"stale read", []porcupine.Operation{set("a", 0, 1), set("b", 2, 3), get("a", 4, 5)}, false},
		{"concurrent read of either", []porcupine.Operation{set("a", 0, 1), set("b", 2, 5), get("a", 3, 4)}, true},
		{"new, then old", []porcupine.Operation{set("a", 0, 1), set("b", 2, 9), get("b", 3, 4), get("a", 5, 6)}, false},
		{"lost write", []porcupine.Operation{set("a", 0, 1), get("", 2, 3)}, false},
		{"unknown write took effect", []porcupine.Operation{lost("a", 0), get("", 1, 2), get("a", 3, 4)}, true},
		{"unknown write took no effect", []porcupine.Operation{lost("a", 0), get("", 1, 2), get("", 3, 4)}, true},
		{"unknown write came and went", []porcupine.Operation{lost("a", 0), get("a", 1, 2), get("", 3, 4)}, false},
		{"two swaps of one value", []porcupine.Operation{set("a", 0, 1), cas("a", "b", 1, 2, 5), cas("a", "c", 1, 2, 5)}, false},
		{"one swap of two", []porcupine.Operation{set("a", 0, 1), cas("a", "b", 1, 2, 5), cas("a", "c", 0, 2, 5), get("b", 6, 7)}, true},
		{"append applied twice", []porcupine.Operation{add("aa", 2, 0, 1), get("aaaa", 2, 3)}, false},
		{"appends", []porcupine.Operation{add("aa", 2, 0, 1), add("bb", 4, 2, 3), get("aabb", 4, 5)}, true},
	} {
		if got := porcupine.CheckOperations(storeModel, test.ops); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

//go:build !unix

package rpc

const canWriteDirect = false

func (d *direct) write([]byte) int { return 0 }

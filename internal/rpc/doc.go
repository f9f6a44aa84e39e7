// Package rpc carries requests and answers between processes as baidu_std frames over
// TCP or TLS.
//
// A process has one outgoing connection per remote address, which carries everything
// it asks there; what it is asked arrives on the connections it accepted. Requests of
// one connection are handed over in the order of their arrival, answers may come in any
// order.
//
// # Goroutines
//
//	accept            one per transport; ends when the listener is closed
//	sweep             one per transport; ends with Close
//	serverConn.run    one per accepted connection: handshake, then reader
//	serverConn.write  one per accepted connection on which something was answered
//	peer.run          one per address with a connection or an attempt: dialer, then writer
//	peer.read         one per outgoing connection; peer.run waits for it
//
// Close waits for all of them.
//
// # Bounds
//
// Everything that grows by what a stranger sends, or does not read, has a bound in
// TCPOptions. A frame's header is judged before anything is allocated for it, and the
// buffer of a large frame grows as its bytes arrive.
package rpc

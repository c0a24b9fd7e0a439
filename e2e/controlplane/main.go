// Command controlplane is every program of a Kubernetes cluster in one binary:
// the tests get a real API server without pulling an image, and the node image
// of the end-to-end clusters is made of the same file.
//
// The component is chosen by the name the binary is called by (a symlink such
// as kube-apiserver), or, under any other name, by the first argument.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubeapiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kubecontrollermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kubeproxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	kubescheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubeadm "k8s.io/kubernetes/cmd/kubeadm/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"

	// What the components' own main packages register.
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
)

// cobraComponent runs a component that is a cobra command, with the flag and
// log handling that Kubernetes' own main packages give it.
func cobraComponent(command func() *cobra.Command) func() int {
	return func() int { return cli.Run(command()) }
}

var components = map[string]func() int{
	"kube-apiserver":          cobraComponent(kubeapiserver.NewAPIServerCommand),
	"kube-controller-manager": cobraComponent(kubecontrollermanager.NewControllerManagerCommand),
	"kube-proxy":              cobraComponent(kubeproxy.NewProxyCommand),
	"kube-scheduler":          cobraComponent(func() *cobra.Command { return kubescheduler.NewSchedulerCommand() }),
	"kubectl":                 cobraComponent(func() *cobra.Command { return kubectl.NewDefaultKubectlCommand() }),
	"kubelet": cobraComponent(func() *cobra.Command {
		return kubelet.NewKubeletCommand(context.Background())
	}),
	"kubeadm": func() int {
		if err := kubeadm.Run(); err != nil {
			return 1
		}
		return 0
	},
	"etcd": func() int {
		etcdmain.Main(os.Args)
		return 0
	},
}

func main() {
	run, ok := components[filepath.Base(os.Args[0])]
	if !ok && len(os.Args) > 1 {
		os.Args = os.Args[1:]
		run, ok = components[os.Args[0]]
	}
	if !ok {
		fmt.Fprintf(os.Stderr, "%s: unknown component\n", os.Args[0])
		os.Exit(2)
	}
	os.Exit(run())
}

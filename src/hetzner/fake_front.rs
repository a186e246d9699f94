use std::net::Ipv4Addr;

use async_trait::async_trait;

use super::FakeCloud;
use super::fake::{State, existing, gone, selects};
use crate::ports::{
    Balancer, BalancerService, BalancerSpec, BalancerTarget, ErrorCode, FloatingIp, Front, Labels, PortError,
    PortResult, PrivateAddress,
};

fn refused(message: &str) -> PortError {
    PortError::new(ErrorCode::Conflict, message)
}

impl State {
    /// Changes a load balancer and notes it.
    fn balance<T>(
        &mut self,
        what: &'static str,
        id: u64,
        how: impl FnOnce(&mut Balancer) -> PortResult<T>,
    ) -> PortResult<T> {
        self.begin(what)?;
        let balancer = self.balancers.get_mut(&id).ok_or_else(|| gone("load balancer", id))?;
        let (result, name) = (how(balancer)?, balancer.name.clone());
        self.log(what, &name, false);
        Ok(result)
    }

    /// An address of the range for load balancers and floating IPs.
    fn front_address(&self) -> PortResult<Ipv4Addr> {
        let taken = |a: Ipv4Addr| {
            self.balancers.values().any(|b| b.public_ipv4 == Some(a)) || self.floating.values().any(|f| f.address == a)
        };
        let free = (10..=250).map(|last| Ipv4Addr::new(198, 18, 0, last)).find(|a| !taken(*a));
        free.ok_or_else(|| PortError::new(ErrorCode::LimitExceeded, "no public address is left"))
    }
}

fn private(target: &BalancerTarget) -> bool {
    matches!(target, BalancerTarget::Selector { private: true, .. } | BalancerTarget::Server { private: true, .. })
}

#[async_trait]
impl Front for FakeCloud {
    async fn balancers(&self, selector: &str) -> PortResult<Vec<Balancer>> {
        let mut state = self.lock();
        state.begin("balancers")?;
        Ok(state.balancers.values().filter(|b| selects(selector, &b.labels)).cloned().collect())
    }

    async fn balancer_by_name(&self, name: &str) -> PortResult<Option<Balancer>> {
        let mut state = self.lock();
        state.begin("balancer_by_name")?;
        Ok(state.balancers.values().find(|b| b.name == name).cloned())
    }

    async fn create_balancer(&self, spec: &BalancerSpec) -> PortResult<Balancer> {
        let mut state = self.lock();
        state.begin("create_balancer")?;
        let found = state.balancers.values().find(|b| b.name == spec.name).map(|b| (b, &b.labels));
        let found = existing(found, &spec.labels, "load balancer", &spec.name)?;
        state.log("create_balancer", &spec.name, found.is_none());
        if let Some(balancer) = found {
            return Ok(balancer);
        }
        state.capacity(&spec.location)?;
        let public_ipv4 = if spec.public { Some(state.front_address()?) } else { None };
        let id = state.id();
        let balancer = Balancer {
            id,
            name: spec.name.clone(),
            location: spec.location.clone(),
            balancer_type: spec.balancer_type.clone(),
            public_ipv4,
            private: Vec::new(),
            services: spec.services.clone(),
            targets: Vec::new(),
            labels: spec.labels.clone(),
        };
        state.balancers.insert(id, balancer.clone());
        Ok(balancer)
    }

    async fn attach_balancer(&self, id: u64, network: u64, address: Ipv4Addr) -> PortResult<()> {
        let mut state = self.lock();
        if !state.networks.contains_key(&network) {
            return Err(gone("network", network));
        }
        state.balance("attach_balancer", id, |b| {
            if !b.private.is_empty() {
                return Err(refused("the load balancer is in a network already"));
            }
            b.private.push(PrivateAddress { network, address });
            Ok(())
        })
    }

    async fn detach_balancer(&self, id: u64, network: u64) -> PortResult<()> {
        self.lock().balance("detach_balancer", id, |b| {
            if b.targets.iter().any(private) {
                return Err(refused("the load balancer has targets at private addresses"));
            }
            b.private.retain(|p| p.network != network);
            Ok(())
        })
    }

    async fn set_balancer_public(&self, id: u64, public: bool) -> PortResult<()> {
        let mut state = self.lock();
        let address = if public { Some(state.front_address()?) } else { None };
        state.balance("set_balancer_public", id, |b| {
            if !public && b.private.is_empty() {
                return Err(refused("a load balancer needs a network or its public interface"));
            }
            b.public_ipv4 = address;
            Ok(())
        })
    }

    async fn set_balancer_service(&self, id: u64, service: &BalancerService) -> PortResult<()> {
        self.lock().balance("set_balancer_service", id, |b| {
            b.services.retain(|s| s.listen_port != service.listen_port);
            b.services.push(service.clone());
            Ok(())
        })
    }

    async fn delete_balancer_service(&self, id: u64, listen_port: u16) -> PortResult<()> {
        self.lock().balance("delete_balancer_service", id, |b| {
            b.services.retain(|s| s.listen_port != listen_port);
            Ok(())
        })
    }

    async fn add_balancer_target(&self, id: u64, target: &BalancerTarget) -> PortResult<()> {
        self.lock().balance("add_balancer_target", id, |b| {
            if private(target) && b.private.is_empty() {
                return Err(PortError::new(ErrorCode::Invalid, "the load balancer is attached to no network"));
            }
            if b.targets.contains(target) {
                return Err(refused("the target is defined already"));
            }
            b.targets.push(target.clone());
            Ok(())
        })
    }

    async fn remove_balancer_target(&self, id: u64, target: &BalancerTarget) -> PortResult<()> {
        self.lock().balance("remove_balancer_target", id, |b| {
            b.targets.retain(|t| t != target);
            Ok(())
        })
    }

    async fn delete_balancer(&self, id: u64) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("delete_balancer")?;
        let balancer = state.balancers.remove(&id).ok_or_else(|| gone("load balancer", id))?;
        state.log("delete_balancer", &balancer.name, false);
        Ok(())
    }

    async fn floating_ips(&self, selector: &str) -> PortResult<Vec<FloatingIp>> {
        let mut state = self.lock();
        state.begin("floating_ips")?;
        Ok(state.floating.values().filter(|f| selects(selector, &f.labels)).cloned().collect())
    }

    async fn floating_ip_by_name(&self, name: &str) -> PortResult<Option<FloatingIp>> {
        let mut state = self.lock();
        state.begin("floating_ip_by_name")?;
        Ok(state.floating.values().find(|f| f.name == name).cloned())
    }

    async fn create_floating_ip(&self, name: &str, location: &str, labels: &Labels) -> PortResult<FloatingIp> {
        let mut state = self.lock();
        state.begin("create_floating_ip")?;
        let found = state.floating.values().find(|f| f.name == name).map(|f| (f, &f.labels));
        let found = existing(found, labels, "floating IP", name)?;
        state.log("create_floating_ip", name, found.is_none());
        if let Some(address) = found {
            return Ok(address);
        }
        state.capacity(location)?;
        let (id, address) = (state.id(), state.front_address()?);
        let made = FloatingIp {
            id,
            name: name.to_owned(),
            address,
            location: location.to_owned(),
            server: None,
            labels: labels.clone(),
        };
        state.floating.insert(id, made.clone());
        Ok(made)
    }

    async fn assign_floating_ip(&self, id: u64, server: u64) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("assign_floating_ip")?;
        if !state.has_server(server) {
            return Err(gone("server", server));
        }
        let address = state.floating.get_mut(&id).ok_or_else(|| gone("floating IP", id))?;
        address.server = Some(server);
        let name = address.name.clone();
        state.log("assign_floating_ip", &name, false);
        Ok(())
    }

    async fn delete_floating_ip(&self, id: u64) -> PortResult<()> {
        let mut state = self.lock();
        state.begin("delete_floating_ip")?;
        let address = state.floating.remove(&id).ok_or_else(|| gone("floating IP", id))?;
        state.log("delete_floating_ip", &address.name, false);
        Ok(())
    }
}
